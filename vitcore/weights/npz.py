"""NumPy's archives: headers read by NumPy's own parser, numbers straight into memory of their size, never a pickle."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from vitcore.errors import VitcoreError
from vitcore.weights.archive import Archive, Member
from vitcore.weights.files import Array, WeightFile

if TYPE_CHECKING:
    from torch import Tensor

_LONGEST_HEADER = 10_000
_MOST_DIMENSIONS = 8
# How NumPy writes floats; two bytes of no type are bfloat16, which it does not know.
_NAMES = {"<f4": "float32", "<f2": "float16", "<f8": "float64", ">f4": "float32", ">f2": "float16", ">f8": "float64",
          "|V2": "bfloat16"}  # fmt: skip


def open_npz(archive: Archive) -> WeightFile:
    """The arrays of an npz, by name without `.npy`."""
    arrays = {}
    for name, member in archive.members.items():
        if not name.endswith(".npy"):
            raise VitcoreError(f"{archive.path}: member {name!r} is no array (.npy); pass an npz of arrays alone, or a file "
                               "of torch")  # fmt: skip
        arrays[name.removesuffix(".npy")] = _array(archive, member)
    return WeightFile(archive.path, "npz", arrays)


def _array(archive: Archive, member: Member) -> Array:
    name = member.name.removesuffix(".npy")

    def refuse(why: str) -> VitcoreError:
        return VitcoreError(f"{archive.path}: array {name!r} {why}; the file is damaged or hostile: fetch it again")

    shape, fortran, dtype, begin = _header(archive.head(member, _LONGEST_HEADER), refuse)
    if dtype.hasobject:
        raise VitcoreError(f"{archive.path}: array {name!r} holds pickled Python objects, which are never opened; save it "
                           "again as numbers")  # fmt: skip
    if len(shape) > _MOST_DIMENSIONS or any(d < 0 for d in shape):
        raise refuse(f"has a header of shape {list(shape)}, which no array of weights has")
    if prod(shape) * dtype.itemsize != member.size - begin:
        raise refuse(f"of shape {list(shape)} and {dtype} takes {prod(shape) * dtype.itemsize} bytes, but "
                     f"{member.size - begin} are there")  # fmt: skip
    kind = _NAMES.get(dtype.str, dtype.name)
    return Array(shape, kind, partial(_read, archive, member, begin, shape, fortran, dtype, kind))


def _header(head: bytes, refuse: Callable[[str], VitcoreError]) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """(shape, whether columns come first, dtype, length) of the text before the numbers."""
    file = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(file)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = reader(file, max_header_size=_LONGEST_HEADER)
        if not all(type(d) is int for d in shape):
            raise ValueError(f"shape {shape}")
    # The parser evaluates a literal: whatever that raises is the header's fault.
    except Exception as e:
        raise refuse(
            f"has no header of an array ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})"
        ) from e
    return shape, fortran, dtype, file.tell()


def _read(
    archive: Archive, member: Member, begin: int, shape: tuple[int, ...], fortran: bool, dtype: np.dtype, kind: str
) -> Tensor:
    import torch

    if kind not in _NAMES.values():
        raise VitcoreError(
            f"{archive.path}: array {member.name.removesuffix('.npy')!r} is of {kind}; weights are floats"
        )
    numbers = np.empty(shape[::-1] if fortran else shape, dtype)
    flat = numbers.reshape(-1).view(np.uint8) if numbers.size else np.empty(0, np.uint8)
    archive.read_into(member, begin, flat.data)
    if kind == "bfloat16":
        made = torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16)
    else:
        made = torch.from_numpy(numbers if dtype.isnative else numbers.astype(dtype.newbyteorder("=")))
    return made.permute(*range(made.ndim)[::-1]) if fortran else made
