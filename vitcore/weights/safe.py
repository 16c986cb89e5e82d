"""safetensors: the header and the numbers through the format's own library, which checks both."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vitcore.errors import VitcoreError
from vitcore.weights.files import Array, WeightFile

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def open_safetensors(path: Path) -> WeightFile:
    """The arrays and the metadata of a file's header; nothing else is read."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {}
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                held = file.get_slice(name)
                dtype = held.get_dtype()
                arrays[name] = Array(tuple(held.get_shape()), _NAMES.get(dtype, dtype), partial(_read, path, name))
            return WeightFile(path, "safetensors", arrays, file.metadata() or {})
    except (SafetensorError, OSError, ValueError, OverflowError) as e:
        raise _refusal(path, e) from e


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError, ValueError, RuntimeError) as e:
        raise _refusal(path, e, f"array {name!r}: ") from e


def _refusal(path: Path, error: Exception, what: str = "") -> VitcoreError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return VitcoreError(f"{path}: {what}it is no whole safetensors file ({reason}); fetch it again")
