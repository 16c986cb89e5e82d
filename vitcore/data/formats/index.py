"""Arrays in a file, written once and memory-mapped afterwards: what the listing of a large data set is kept in.

The file is: a magic word; the arrays, each from a multiple of 8 bytes; a JSON header that says where they lie; the header's
length as 8 bytes; a blake2b digest of all before it. It is written under a temporary name, synced and renamed. No torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from vitcore.errors import VitcoreError
from vitcore.folders import user_cache

Arrays = dict[str, npt.NDArray[Any]]

MAGIC = b"vitcore index 1\n"
FOLDER = ".vitcore"
_DIGEST = 32
_CHUNK = 1 << 20
_LARGEST_HEADER = 1 << 28


class DamagedIndex(Exception):
    """A file that is no whole index of the kind that was asked for; its text is the reason."""


class Index:
    """Facts and arrays, in memory or memory-mapped. Its pickle is the path of its file, where it has one."""

    def __init__(self, facts: dict[str, Any], arrays: Arrays, path: Path | None = None, digest: bytes = b"") -> None:
        self.facts, self.arrays, self.path, self.digest = facts, arrays, path, digest

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Index, (self.facts, self.arrays)
        return _reopen, (self.path, self.digest)


def places(root: Path, name: str) -> list[Path]:
    """Where the index `name` of the data in `root` may lie, best first: beside the data, or, where that cannot be written, in
    the user's cache (`vitcore.folders.user_cache`)."""
    real = os.path.realpath(root)
    whose = hashlib.blake2b(os.fsencode(real), digest_size=8).hexdigest()
    return [Path(real) / FOLDER / f"{name}.index", user_cache() / "indexes" / f"{whose}-{name}.index"]


def write_index(path: Path, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Index:
    """Write the file and open it; OSError where that cannot be done, and then nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644)
            _write(file, kind, facts, arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    return open_index(path, kind)


def _write(file: BinaryIO, kind: str, facts: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    place = 0

    def put(data: bytes | memoryview) -> None:
        nonlocal place
        file.write(data)
        digest.update(data)
        place += len(data)

    put(MAGIC)
    sections = {}
    for name, array in arrays.items():
        put(bytes(-place % 8))
        sections[name] = {"dtype": array.dtype.newbyteorder("<").str, "shape": array.shape, "start": place}
        flat = np.ascontiguousarray(array).reshape(-1)
        for start in range(0, len(flat), _CHUNK):
            put(flat[start : start + _CHUNK].astype(flat.dtype.newbyteorder("<"), copy=False).tobytes())
    header = json.dumps({"kind": kind, "facts": dict(facts), "arrays": sections}).encode("ascii")
    put(header)
    put(len(header).to_bytes(8, "little"))
    file.write(digest.digest())


def open_index(path: Path, kind: str) -> Index:
    """Check the whole file against its digest and map its arrays; it is read in pieces, so that it takes no memory.

    Raises FileNotFoundError where there is none, DamagedIndex for one that is cut, changed or of another kind.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _checked_header(file, size)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedIndex(error.strerror or str(error)) from error
    if header.get("kind") != kind:
        raise DamagedIndex(f"it is an index of {header.get('kind')!r}, not of {kind!r}")
    return _mapped(path, size, header)


def _checked_header(file: BinaryIO, size: int) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=_DIGEST)
    rest = size - _DIGEST
    if rest < len(MAGIC) + 8 or file.read(len(MAGIC)) != MAGIC:
        raise DamagedIndex("it is cut off, or of another version")
    file.seek(0)
    while rest > 0 and (piece := file.read(min(_CHUNK, rest))):
        digest.update(piece)
        rest -= len(piece)
    if digest.digest() != file.read(_DIGEST):
        raise DamagedIndex("it does not match its digest")
    return _header(file, size)


def _header(file: BinaryIO, size: int) -> dict[str, Any]:
    file.seek(size - _DIGEST - 8)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size, _LARGEST_HEADER):
        raise DamagedIndex("its header is longer than the file")
    file.seek(size - _DIGEST - 8 - length)
    try:
        header = json.loads(file.read(length))
    except ValueError as error:
        raise DamagedIndex("its header is no JSON") from error
    if not isinstance(header, dict):
        raise DamagedIndex("its header is no JSON object")
    return header


def _mapped(path: Path, size: int, header: Mapping[str, Any]) -> Index:
    arrays: Arrays = {}
    try:
        # One map for all: each keeps a file open. As a plain array, so that what is cut out of it is an ordinary one.
        whole = np.asarray(np.memmap(path, np.uint8, "r"))
        for name, section in header["arrays"].items():
            dtype, shape, start = np.dtype(section["dtype"]), tuple(section["shape"]), int(section["start"])
            end = start + dtype.itemsize * math.prod(shape)
            if dtype.hasobject or not 0 <= start <= end <= min(size, len(whole)):
                raise DamagedIndex(f"its array {name!r} lies outside the file")
            arrays[name] = whole[start:end].view(dtype).reshape(shape)
        with open(path, "rb") as file:
            file.seek(size - _DIGEST)
            return Index(dict(header["facts"]), arrays, path, file.read(_DIGEST))
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise DamagedIndex(f"its header is of no index ({error})") from error


def _reopen(path: Path, digest: bytes) -> Index:
    """The same index in another process; VitcoreError when another was written there since."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - _DIGEST, 0))
            if file.read(_DIGEST) == digest:
                return _mapped(path, size, _header(file, size))
    except (OSError, DamagedIndex) as error:
        raise VitcoreError(f"{path}: the listing of the data cannot be read again ({error}); start anew") from error
    raise VitcoreError(f"{path}: the listing of the data was replaced since the run began; start anew")
