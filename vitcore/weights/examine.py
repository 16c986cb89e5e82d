"""What a file of weights holds, without reading its numbers: layout, architecture, and where each array belongs.

Imports no torch for files that can be listed without it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitcore.errors import VitcoreError, nearest
from vitcore.model.variants import Variant
from vitcore.weights import google, huggingface, own, timm
from vitcore.weights.files import Array, WeightFile, open_weights
from vitcore.weights.layout import STRUCTURE, Context, Found, Layout, Piece, Pieces, square, structure

LAYOUTS: tuple[Layout, ...] = (google.LAYOUT, huggingface.LAYOUT, timm.LAYOUT)
# Only beside files of these names is a configuration the file's own; it is their libraries' convention.
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_BESIDE = {"config": "config.json", "preprocessor": "preprocessor_config.json"}
_LARGEST_JSON = 16 << 20


@dataclass(frozen=True)
class Weights:
    """A file whose arrays are those of one Vision Transformer, each of its right shape."""

    file: WeightFile
    layout: str
    found: Found
    arrays: Mapping[str, Array]
    """By the names that `pieces` use."""
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]
    config: Mapping[str, Any]
    """The configuration beside the file, {} where there is none."""

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def variant(self) -> Variant:
        return self.found.variant

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches; None where the file does not say and they are no square."""
        return self.found.grid or square(self.found.patches)

    @property
    def img_size(self) -> tuple[int, int] | None:
        """Rows and columns of pixels that the file was made for; where it does not say, as many as its patches have."""
        if self.found.img_size or not self.grid:
            return self.found.img_size
        return self.grid[0] * self.variant.stride, self.grid[1] * self.variant.stride

    def head_is_zero(self) -> bool:
        """Whether the head is one that predicts nothing, as in Google's imagenet21k files."""
        pieces = [p for p in self.pieces if p.parameter.startswith("head.")]
        return bool(pieces) and not any(bool(self.arrays[p.name].read().any()) for p in pieces)


def examine(path: Path, overrides: Mapping[str, Any] | None = None) -> Weights:
    """Open a file or folder of weights and read from names and shapes alone what it is.

    `overrides` replace fields of the variant: what shapes do not tell (`heads`), and arithmetic (`gelu`).
    Raises VitcoreError that names the array where one is missing, unknown, or of another shape.
    """
    file, said, beside = _open(path)
    changes = dict(overrides or {})
    if said is not None:
        averaged = any(n.startswith(own.AVERAGE) for n in file.arrays)
        prefix, other = (own.AVERAGE, own.PARAMETERS) if averaged else (own.PARAMETERS, own.AVERAGE)
        names = {n.removeprefix(prefix): a for n, a in file.arrays.items() if not n.startswith((*_OTHER_STATE, other))}
        notes: tuple[str, ...] = ()
        if averaged:
            notes = ("these are the moving average of the run's parameters, as its evaluations were",)
        return _checked(file, "vitcore", names, said, own.pieces, notes, {}, changes)
    layout = next((known for known in LAYOUTS if known.matches(file.arrays)), None)
    if layout is None:
        some = ", ".join(repr(n) for n in list(file.arrays)[:3]) or "no arrays"
        raise VitcoreError(f"{file.path}: it holds {some}, which are names of no Vision Transformer of Google, timm, "
                           "Hugging Face or vitcore; pass a file of one of these")  # fmt: skip
    arrays, notes = layout.clean(file.arrays)
    shapes = {n: a.shape for n, a in arrays.items()}
    found = layout.describe(Context(str(file.path), shapes, beside, changes))
    return _checked(file, layout.name, arrays, found, layout.pieces, notes, beside.get("config", {}), changes)


_OTHER_STATE = ("opt/", "metrics/")


def _open(path: Path) -> tuple[WeightFile, Found | None, dict[str, Any]]:
    """(file, what it says of itself where it is ours, the JSON beside it)."""
    if path.is_dir():
        if checkpoint := own.checkpoint_folder(path):
            from vitcore.checkpoint import check_tensors, read_record

            record = read_record(checkpoint)
            check_tensors(checkpoint, record)
            said = own.found(str(checkpoint), record["facts"].get(own.KEY))
            return open_weights(checkpoint / "state.safetensors"), said, {}
        path = _in_folder(path)
    file = open_weights(path)
    if own.KEY in file.metadata:
        return file, own.from_header(str(path), file.metadata), {}
    beside = {}
    if path.name in _IN_FOLDER:
        beside = {k: _read_json(path.with_name(n)) for k, n in _BESIDE.items() if path.with_name(n).is_file()}
    return file, None, beside


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDER:
        if (folder / name).is_file():
            return folder / name
        if (folder / f"{name}.index.json").is_file():
            raise VitcoreError(f"{folder}: its weights lie in several files ({name}.index.json); save them as one, with "
                               "save_pretrained(..., max_shard_size='100GB')")  # fmt: skip
    kinds = (".npz", ".safetensors", ".pth", ".pt", ".bin")
    files = sorted(p for p in folder.iterdir() if p.suffix in kinds)
    if len(files) == 1:
        return files[0]
    what = (
        "no file of weights" if not files else f"{len(files)} files of weights ({files[0].name}, {files[1].name} ...)"
    )
    raise VitcoreError(f"{folder}: it holds {what}; give the path of one file, or a folder with model.safetensors")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise VitcoreError(
                f"{path}: {path.stat().st_size} bytes are too many for a configuration; correct or remove it"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
    except (OSError, ValueError, RecursionError) as e:
        raise VitcoreError(f"{path}: it cannot be read as JSON ({e}); correct or remove it") from e
    return value


def _checked(
    file: WeightFile, name: str, arrays: Mapping[str, Array], found: Found, make: Pieces, notes: tuple[str, ...],
    config: Mapping[str, Any], changes: Mapping[str, Any],
) -> Weights:  # fmt: skip
    """The weights when every array is there, of its shape, and nothing else is."""
    found = replace(found, variant=found.variant.replace(**changes))
    pieces = make(found.variant, found.patches, found.num_classes)
    if not found.class_slot:
        positions = (1, found.patches, found.variant.width)
        pieces = [replace(p, shape=positions) if p.parameter == "pos_embed" else p for p in pieces]
    wanted = {p.name: p for p in pieces}
    for piece in pieces:
        if piece.name not in arrays:
            raise VitcoreError(f"{file.path}: array {piece.name!r} is missing; the file is incomplete: fetch it again")
        if not piece.fits(shape := arrays[piece.name].shape):
            raise VitcoreError(f"{file.path}: array {piece.name!r} is of shape {list(shape)}, where the other arrays ask "
                               f"for {list(piece.shape)}; the file is damaged or of another kind")  # fmt: skip
    if extra := [n for n in arrays if n not in wanted]:
        hint = nearest(extra[0], list(wanted))
        raise VitcoreError(f"{file.path}: array {extra[0]!r} of shape {list(arrays[extra[0]].shape)} is no part of the "
                           f"model that the others make{hint}, {found.variant.name}; its model has parts that vitcore's "
                           "has not")  # fmt: skip
    for piece in pieces:
        if (dtype := arrays[piece.name].dtype) not in FLOATS:
            raise VitcoreError(f"{file.path}: array {piece.name!r} is of {dtype}; weights are {', '.join(FLOATS)}")
    return Weights(file, name, found, arrays, tuple(pieces), (*notes, *found.notes), config)


FLOATS = ("float32", "float16", "bfloat16", "float64")


def check_structure(where: str, held: Variant, asked: Variant, stated: str) -> None:
    """Refuse, showing both, a variant that was stated where the file's, `held`, has another structure."""
    if structure(asked) != structure(held):
        differ = [f for f, a, b in zip(STRUCTURE, structure(asked), structure(held)) if a != b]
        there = ", ".join(f"{f} {_show(held, f)}" for f in differ)
        here = ", ".join(f"{f} {_show(asked, f)}" for f in differ)
        raise VitcoreError(f"{where} holds {held.name} ({there}), {stated} is another ({here}); change one of the two, or "
                           "leave out what the file says")  # fmt: skip


def _show(variant: Variant, field: str) -> str:
    value = getattr(variant, field)
    if field == "layer_scale":
        return "yes" if value is not None else "no"
    return (
        "x".join(map(str, value)) or "root alone"
        if isinstance(value, tuple)
        else str(value if value is not None else "none")
    )
