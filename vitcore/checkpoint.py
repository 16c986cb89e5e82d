"""Checkpoints: the values of the step's linear parameters and the host's own facts, device-neutral.

A checkpoint is a folder `step-<n>` with `state.safetensors` (tensors) and `state.json` (cursor, key, facts, and digests
of the tensors and of itself). It is written under a temporary name, synced and renamed, so a crash leaves the old one
or the new one.
Nothing that is loaded executes code.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.runtime.reference.data import Key
from vitcore.runtime.reference.metrics import SLOTS
from vitcore.step.ir import Value

FORMAT = 1
_TENSORS, _FACTS = "state.safetensors", "state.json"
# Of a folder being written, and of the one it replaces: nobody else's files end so, and no run lists them.
_NEW, _OLD = ".vitcore-new", ".vitcore-old"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: tensors by flat name on the host, the state's plain values, and the host's facts."""

    path: Path
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    facts: Mapping[str, Any]


def flatten(saved: Mapping[str, Any], kinds: Mapping[str, str], names: Sequence[str]) -> tuple[dict, dict]:
    """(tensors by flat name, plain values) of a state: `params/<name>`, `ema/<name>`, `opt/<slot>/<name>`, `metrics/<slot>`."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for key, value in saved.items():
        kind = kinds[key]
        if kind in ("params", "ema"):
            tensors.update({f"{kind}/{n}": t for n, t in zip(names, value, strict=True)})
        elif kind == "opt":
            for slot, some in value.items():
                each = len(some) == len(names)
                keys = [f"opt/{slot}/{n}" for n in names] if each else [f"opt/{slot}"]
                tensors.update({k: t for k, t in zip(keys, some, strict=True) if t is not None})
        elif kind == "metrics":
            tensors.update({f"metrics/{slot}": t for slot, t in value.items()})
        else:
            values[key] = value._asdict() if isinstance(value, Key) else value
    return {n: t.detach().cpu().contiguous() for n, t in tensors.items()}, values


def save(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a checkpoint folder atomically; an older one of the same name is replaced."""
    temporary = path.with_name(f".{path.name}{_NEW}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        temporary.mkdir()
        save_file(dict(tensors), temporary / _TENSORS)
        _sync(temporary / _TENSORS)
        record = {"format": FORMAT, "sha256": _digest(temporary / _TENSORS), "values": values, "facts": facts}
        record["record_sha256"] = _record_digest(record)
        (temporary / _FACTS).write_text(json.dumps(record, indent=1), encoding="utf-8")
        _sync(temporary / _FACTS)
        _sync(temporary)
        _replace(path, temporary)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        why = (e.strerror if isinstance(e, OSError) else None) or e
        raise VitcoreError(f"checkpoint {path}: writing failed: {why}; free space or choose another "
                           "--output_dir (older checkpoints are untouched)") from e  # fmt: skip
    return path


def _aside(path: Path) -> Path:
    """Where the old checkpoint of a name stands while the new one takes its place: `load` looks there too."""
    return path.with_name(f".{path.name}{_OLD}")


def _replace(path: Path, temporary: Path) -> None:
    aside = _aside(path)
    replaces = path.exists()
    if replaces:
        path.rename(aside)
    try:
        temporary.rename(path)
    except OSError:
        if replaces:
            aside.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Undo what a killed writer left half done."""
    for left in folder.glob(f".*{_NEW}"):
        shutil.rmtree(left, ignore_errors=True)
    for left in folder.glob(f".*{_OLD}"):
        path = left.with_name(left.name[1 : -len(_OLD)])
        if path.exists():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.rename(path)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint, or a run folder's newest; what is missing, cut short or changed is named."""
    path = find(path)
    record = read_record(path)
    check_tensors(path, record)
    try:
        tensors = load_file(path / _TENSORS)
    except (OSError, SafetensorError) as e:
        raise VitcoreError(f"checkpoint {path}: {_TENSORS} cannot be read ({e}); resume from another one") from e
    return Checkpoint(path, tensors, record["values"], record["facts"])


def read_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint folder, after its own digest was found right; the tensors are not looked at."""
    try:
        record = json.loads((path / _FACTS).read_text(encoding="utf-8"))
        if (found := record["format"]) != FORMAT:
            raise VitcoreError(
                f"checkpoint {path}: format {found}, this version reads {FORMAT}; use the vitcore that wrote it"
            )
        _, own, _, _ = (record[n] for n in ("sha256", "record_sha256", "values", "facts"))
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise VitcoreError(f"checkpoint {path}: {_FACTS} cannot be read ({type(e).__name__}: {e}); "
                           "it is incomplete or corrupt, resume from another one") from e  # fmt: skip
    if _record_digest(record) != own:
        raise VitcoreError(
            f"checkpoint {path}: {_FACTS} does not match its digest; it was edited or is corrupt, resume from another"
        )
    return record


def check_tensors(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose tensors do not match their digest in the record."""
    try:
        same = _digest(path / _TENSORS) == record["sha256"]
    except OSError as e:
        raise VitcoreError(f"checkpoint {path}: {_TENSORS} cannot be read ({e}); resume from another one") from e
    if not same:
        raise VitcoreError(
            f"checkpoint {path}: {_TENSORS} does not match its digest; it is corrupt, resume from another"
        )


def unflatten(
    checkpoint: Checkpoint, state: Sequence[Value], names: Sequence[str], shapes: Sequence[torch.Size],
    slots: Mapping[str, Sequence[int] | None], device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Saved values by name, on the device. `slots`: the optimizer's slots, each with the positions of the parameters that it
    has a tensor for (the others have None), or None where it is one tensor.

    A checkpoint of another model or optimizer is refused with the first key that differs.
    """
    bundles = [v.ty.kind for v in state if v.ty.kind in ("params", "ema")]
    want = {f"{kind}/{n}": s for kind in bundles for n, s in zip(names, shapes, strict=True)}
    for slot, where in slots.items():
        want.update({f"opt/{slot}": torch.Size()} if where is None
                    else {f"opt/{slot}/{names[i]}": shapes[i] for i in where})  # fmt: skip
    want.update({f"metrics/{slot}": torch.Size() for slot in SLOTS})
    _same(checkpoint, want)
    t = {n: x.to(device) for n, x in checkpoint.tensors.items()}
    out: dict[str, Any] = {}
    for v in state:
        kind = v.ty.kind
        if kind in ("params", "ema"):
            out[v.name] = tuple(t[f"{kind}/{n}"] for n in names)
        elif kind == "opt":
            out[v.name] = {
                s: (t[f"opt/{s}"],) if where is None else tuple(t.get(f"opt/{s}/{n}") for n in names)
                for s, where in slots.items()
            }
        elif kind == "metrics":
            out[v.name] = {s: t[f"metrics/{s}"] for s in SLOTS}
        elif kind == "key":
            out[v.name] = Key(**checkpoint.values[v.name])
        else:
            out[v.name] = checkpoint.values[v.name]
    return out


def _same(checkpoint: Checkpoint, want: Mapping[str, torch.Size]) -> None:
    have = checkpoint.tensors
    made = checkpoint.facts.get("model", "another model")
    for name in [*want, *have]:
        if name not in have or name not in want or have[name].shape != want[name] or have[name].dtype != torch.float32:
            held = f"{list(have[name].shape)} {have[name].dtype}" if name in have else "nothing"
            asked = f"{list(want[name])} float32" if name in want else "nothing"
            raise VitcoreError(
                f"checkpoint {checkpoint.path}: it is of {made}, not of this model and optimizer: {name!r} is {held} "
                f"there and {asked} here; resume with the settings it was made with"
            )


def newest(run_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run folder."""
    folder = run_dir / "checkpoints"
    found = [p for p in (*folder.glob("step-*"), *folder.glob(f".step-*{_OLD}")) if (p / _FACTS).is_file()]
    # Of two of one step the one aside is older: "s" sorts after ".".
    return max(found, key=lambda p: (p.name.lstrip(".").removesuffix(_OLD), p.name), default=None)


def find(path: Path) -> Path:
    """The checkpoint folder that `path` is, or the newest of the run folder that it is."""
    if (path / _FACTS).is_file() or (path / _TENSORS).is_file():
        return path
    if (path / "checkpoints").is_dir():
        found = newest(path)
        if found is None:
            raise VitcoreError(f"run folder {path}: it holds no complete checkpoint; start without --resume")
        return found
    if (_aside(path) / _FACTS).is_file():
        return _aside(path)
    raise VitcoreError(f"checkpoint {path}: no such checkpoint or run folder; give a folder that holds {_FACTS}")


def _record_digest(record: Mapping[str, Any]) -> str:
    """Of everything in the record but this digest, however the JSON is laid out."""
    rest = {k: v for k, v in record.items() if k != "record_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
