"""vitcore's own files: `model.safetensors` with the model's facts in its header, and the checkpoints of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitcore.errors import VitcoreError
from vitcore.model.shapes import parameter_shapes
from vitcore.model.variants import Variant
from vitcore.weights.layout import Found, Piece

if TYPE_CHECKING:
    from vitcore.model.vit import VisionTransformer

KEY = "vitcore"
"""Of the safetensors header, and of a checkpoint's facts: what the model is, as JSON."""
PARAMETERS = "params/"
"""Before the names of a checkpoint's parameters."""
AVERAGE = "ema/"
"""Before the names of their moving average, where a run keeps one: it is what the run evaluates, so it is its model."""
# A description is checked against the arrays block by block: it must not say more of them than any model has.
_MOST_BLOCKS = 10_000


def pieces(variant: Variant, patches: int, num_classes: int) -> list[Piece]:
    """The parameters under their own names."""
    return [Piece(n, shape, n) for n, shape in parameter_shapes(variant, patches, num_classes).items()]


def facts(model: VisionTransformer) -> dict[str, Any]:
    """All that is needed beside the parameters to build the model again."""
    names = model.class_names
    return {
        "variant": asdict(model.variant), "img_size": list(model.img_size), "num_classes": model.num_classes,
        "class_names": None if names is None else list(names),
    }  # fmt: skip


def found(path: str, said: Any) -> Found:
    """The model that `facts` describes; VitcoreError when something of it is missing or of another type."""
    try:
        variant = _variant(said["variant"])
        if variant.depth + sum(variant.stages or ()) > _MOST_BLOCKS:
            raise ValueError(f"more than {_MOST_BLOCKS} blocks")
        height, width = said["img_size"]
        classes, names = said["num_classes"], said["class_names"]
        if not all(type(n) is int for n in (height, width, classes)) or min(height, width, classes + 1) < 1:
            raise ValueError("img_size and num_classes are whole numbers")
        if names is not None and (not isinstance(names, list) or len(names) != classes):
            raise ValueError(f"class_names are as many as classes, {classes}")
    except (VitcoreError, KeyError, TypeError, ValueError) as e:
        raise VitcoreError(f"{path}: its description of the model cannot be used ({type(e).__name__}: {e}); it is "
                           "damaged or of another version of vitcore") from e  # fmt: skip
    grid = variant.grid(height, width)
    positions = grid[0] * grid[1] + (variant.pool == "token")
    labels = None if names is None else tuple(map(str, names))
    return Found(variant, positions, classes, grid=grid, img_size=(height, width), class_names=labels)


def from_header(path: str, metadata: Mapping[str, str]) -> Found:
    """The model of a file whose header holds `KEY`."""
    try:
        said = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as e:
        raise VitcoreError(f"{path}: its header's {KEY!r} is no JSON ({e}); the file is damaged") from e
    return found(path, said)


def checkpoint_folder(path: Path) -> Path | None:
    """The checkpoint that a folder is, or the newest of the run that it is; None when it is neither."""
    if (path / "state.json").is_file():
        return path
    if (path / "checkpoints").is_dir():
        from vitcore.checkpoint import find

        return find(path)
    return None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _variant(values: Any) -> Variant:
    hints = {f.name: f for f in fields(Variant)}
    if not isinstance(values, dict) or not set(values) <= set(hints):
        raise ValueError("a variant has other fields")
    made: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    for name, value in made.items():
        kind = str(hints[name].type)
        whole, number = type(value) is int, _is_number(value)
        good = {
            "int": whole, "float": number, "str": isinstance(value, str), "float | None": value is None or number,
            "tuple[int, ...] | None": value is None or (isinstance(value, tuple) and all(type(v) is int for v in value)),
            "tuple[float, ...]": isinstance(value, tuple) and all(map(_is_number, value)),
        }[kind.removeprefix("<class '").removesuffix("'>")]  # fmt: skip
        if not good:
            raise ValueError(f"{name} = {value!r} is not of type {kind}")
    return Variant(**made)
