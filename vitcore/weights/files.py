"""Files of named arrays: npz, safetensors and torch's zip, each treated as hostile. Imports no torch.

What a file says of its arrays is checked against its size before memory is taken; nothing in it is executed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitcore.errors import VitcoreError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Array:
    """What a file says of one array. `dtype` is "float32", "float16", "bfloat16" or "float64", or the file's own name of
    another; `read` gives the numbers as a tensor on the host (VitcoreError where they are cut short or corrupt)."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class WeightFile:
    """An opened file: `format` is "npz", "safetensors" or "pth"; `metadata` is a safetensors header's."""

    path: Path
    format: str
    arrays: Mapping[str, Array]
    metadata: Mapping[str, str] = field(default_factory=dict)


# What people have in the place of a file of weights, by its first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS; fetch the file itself with `git lfs pull`"),
    (b"<", "a page of HTML or XML, as a failed download leaves; fetch the file again"),
    (b"\x89HDF", "HDF5; pass npz, safetensors or pth"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
    (b"\x93NUMPY", "one array of NumPy; pass an npz of all of them"),
    (b"\x80", "a pickle of torch before 1.6, which is not opened; save it again with torch.save of a newer torch"),
)


def open_weights(path: Path) -> WeightFile:
    """Open a file by its content, whatever its name; VitcoreError for one that is of no known kind."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as e:
        raise VitcoreError(f"{path}: no such file; give the path of a file of weights") from e
    except OSError as e:
        raise VitcoreError(f"{path}: it cannot be read ({e.strerror}); give a file of weights that can") from e
    if not head:
        raise VitcoreError(f"{path}: the file is empty; fetch it again")
    if head.startswith(b"PK"):
        from vitcore.weights import archive

        return archive.open_zip(path)
    # First: the length of its header, with which a safetensors file begins, may be any bytes.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        from vitcore.weights import safe

        return safe.open_safetensors(path)
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise VitcoreError(f"{path}: it is no file of weights but {what}")
    raise VitcoreError(f"{path}: it is neither npz nor safetensors nor pth, or it is cut short; fetch it again")
