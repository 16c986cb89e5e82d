"""State dicts that torch saved: its weights-only reader, after the archive was checked, and nothing but tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.weights.archive import FREE, TIMES, Archive
from vitcore.weights.files import Array, WeightFile

_LARGEST_PICKLE = 64 << 20
# Where training programs keep the state dict; averaged weights only where there are no others.
_ENTRIES = ("state_dict", "model", "module", "net", "model_ema", "state_dict_ema", "ema")
_PREFIXES = ("module.", "_orig_mod.")


def open_pth(archive: Archive) -> WeightFile:
    """The tensors of a state dict, or of the one inside a training program's checkpoint (named in the metadata)."""
    path = archive.path
    for member in archive.members.values():
        if member.deflated:
            raise VitcoreError(f"{path}: member {member.name!r} is compressed, which torch's files never are; save it again "
                               "with torch.save")  # fmt: skip
        if member.name.endswith("/data.pkl") and member.size > _LARGEST_PICKLE:
            raise VitcoreError(f"{path}: its list of tensors takes {member.size} bytes, more than any model's; the file is "
                               "hostile or no state dict")  # fmt: skip
    try:
        content = torch.load(path, map_location=_stay, weights_only=True, mmap=True)
    except pickle.UnpicklingError as e:
        raise VitcoreError(f"{path}: it holds more than tensors, which is not opened ({_reason(e)}); save its state dict "
                           "alone, torch.save(model.state_dict(), ...)") from e  # fmt: skip
    # A damaged pickle may raise anything; what it would call was never called.
    except Exception as e:
        raise VitcoreError(
            f"{path}: it is no whole file of torch ({type(e).__name__}: {_reason(e)}); fetch it again"
        ) from e
    entry, tensors = _state_dict(path, content)
    for prefix in _PREFIXES:
        if tensors and all(n.startswith(prefix) for n in tensors):
            tensors = {n.removeprefix(prefix): t for n, t in tensors.items()}
    arrays = {n: _array(path, n, t) for n, t in tensors.items()}
    # Many names may lie on the same numbers, each of which a model has memory for.
    total, size = sum(t.numel() * t.element_size() for t in tensors.values()), path.stat().st_size
    if total > FREE + TIMES * size:
        raise VitcoreError(f"{path}: its arrays take {total} bytes, of {size} in the file, so most of them are the same; "
                           "the file is hostile or no state dict")  # fmt: skip
    return WeightFile(path, "pth", arrays, {"entry": entry} if entry else {})


def _stay(storage: Any, location: str) -> Any:
    """A storage where it was read, on the host, whatever device the file names."""
    return storage


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return telling.rstrip(".")[:200]


def _state_dict(path: Any, content: Any) -> tuple[str, dict[str, Tensor]]:
    if isinstance(content, Mapping) and not any(isinstance(v, Tensor) for v in content.values()):
        for entry in _ENTRIES:
            if isinstance(content.get(entry), Mapping):
                return entry, _tensors(path, content[entry])
    return "", _tensors(path, content)


def _tensors(path: Any, values: Any) -> dict[str, Tensor]:
    if not isinstance(values, Mapping):
        raise VitcoreError(f"{path}: it holds a {type(values).__name__}, no state dict; save model.state_dict()")
    out = {}
    for name, value in values.items():
        if isinstance(value, Tensor) and isinstance(name, str):
            out[name] = value
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            raise VitcoreError(f"{path}: key {str(name)[:100]!r} holds a {type(value).__name__}, no tensor; save "
                               "model.state_dict() alone")  # fmt: skip
    return out


def _array(path: Any, name: str, tensor: Tensor) -> Array:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        raise VitcoreError(f"{path}: array {name!r} is sparse, quantized or without numbers; save it as a dense tensor")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise VitcoreError(f"{path}: array {name!r} of shape {list(tensor.shape)} has fewer numbers than its shape; save it "
                           "with .contiguous()")  # fmt: skip
    return Array(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)
