"""Tar shards of samples, as the `webdataset` library writes them, read at any place in any order without it.

Each shard's headers are read once, and the places of its samples kept in an index; a shard whose size or time changed is read
again. Samples are then numbered through all shards, so that their order depends on no worker; the library's own readers shuffle
within what a worker holds.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import UnreadablePicture
from vitcore.data.formats.bar import Bar
from vitcore.data.formats.index import DamagedIndex, Index, open_index, places, write_index
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.data.formats.shards import EXTENSIONS, name_of, read_shard
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

KIND = "tar shards, 1"
CLASS_NAMES = "classnames.txt"
# Shards that a process keeps open; the others are opened for each read.
MOST_OPEN = 128
_PARTS = {"train": ("train",), "val": ("val", "validation", "test")}


class Shards:
    """The samples of one split's shards: a `vitcore.data.source.Source`."""

    def __init__(self, folder: str, index: Index) -> None:
        self._folder, self._index = folder, index
        self.labels: Int64s = index.arrays["labels"]
        self._starts, self._sizes = index.arrays["starts"], index.arrays["sizes"]
        self._shards: list[str] = [shard["name"] for shard in index.facts["shards"]]
        self._ends = np.cumsum([shard["samples"] for shard in index.facts["shards"]])
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shards, (self._folder, self._index)

    def __del__(self) -> None:
        for handle in getattr(self, "_open", {}).values():
            os.close(handle)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The picture's bytes, read at its place."""
        shard, start, size = self._shard(index), int(self._starts[index]), int(self._sizes[index])
        try:
            handle = self._handle(shard)
            try:
                data = os.pread(handle, size, start)
            finally:
                if self._open.get(shard) != handle:
                    os.close(handle)
        except OSError as error:
            raise UnreadablePicture(error.strerror or str(error)) from error
        if len(data) != size:
            raise UnreadablePicture(f"the shard ends after {len(data)} of its {size} bytes")
        return data

    def where(self, index: int) -> str:
        """The shard and the picture's name in it."""
        path = self._path(self._shard(index))
        return f"{path}: {name_of(path, int(self._starts[index])) or f'at byte {self._starts[index]}'}"

    def _shard(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, side="right"))

    def _path(self, shard: int) -> str:
        return os.path.join(self._folder, self._shards[shard])

    def _handle(self, shard: int) -> int:
        handle = self._open.get(shard)
        if handle is None:
            handle = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            with self._lock:
                if len(self._open) < MOST_OPEN:
                    self._open.setdefault(shard, handle)
        return handle


def open_webdataset(options: DatasetOptions) -> PictureSet:
    """Open the shards under `options.data_path`: `train/*.tar` and `val/*.tar`, or `train-*.tar` and `val-*.tar`.

    Classes are named by the lines of `classnames.txt` there, or are numbers. Raises VitcoreError for missing and damaged shards.
    """
    root = options.data_path
    if root is None or not root.is_dir():
        where = "no data path" if root is None else f"{root} is not a folder"
        raise VitcoreError(f"webdataset: {where}; give the folder that holds the shards, train/*.tar and val/*.tar")
    train, val = (_open_part(root, part) for part in _PARTS)
    classes = 1 + max(int(part.labels.max()) for part in (train, val))
    return open_pictures(options, _class_names(root / CLASS_NAMES, classes), train, val)


def _open_part(root: Path, part: str) -> Shards:
    paths = find_shards(root, part)
    seen = [(str(path.relative_to(root)), *_stamp(path)) for path in paths]
    old = _read_index(root, part)
    known = {} if old is None else _known(old)
    if old is not None and [(s["name"], s["size"], s["time"]) for s in old.facts["shards"]] == seen:
        return Shards(str(root), old)
    shards, columns = list[dict[str, Any]](), list[tuple[Int64s, Int64s, Int64s]]()
    with Bar(f"reading the {part} shards", len(paths)) as bar:
        for path, stamp in zip(paths, seen, strict=True):
            columns.append(known[stamp] if stamp in known else _columns(path))
            shards.append(dict(zip(("name", "size", "time"), stamp, strict=True), samples=len(columns[-1][0])))
            bar.advance(1)
    arrays = {
        name: np.concatenate(each) for name, each in zip(("starts", "sizes", "labels"), zip(*columns), strict=True)
    }
    for place in places(root, f"shards-{part}"):
        try:
            return Shards(str(root), write_index(place, KIND, {"shards": shards}, arrays))
        except (OSError, DamagedIndex) as error:
            log.warning("%s cannot be written (%s); the shards are read again the next time", place, error)
    return Shards(str(root), Index({"shards": shards}, arrays))


def find_shards(root: Path, part: str) -> list[Path]:
    """The shards of a part, sorted; VitcoreError where there are none."""
    for name in _PARTS[part]:
        found = sorted((root / name).glob("*.tar")) or sorted(root.glob(f"{name}-*.tar"))
        found = [path for path in found if path.is_file() and not path.name.startswith(".")]
        if found:
            return found
    raise VitcoreError(f"webdataset: {root} holds no {part}/*.tar or {part}-*.tar; put the shards there, each sample as a "
                       f"picture ({', '.join(EXTENSIONS)}) and a .cls of the same name")  # fmt: skip


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _columns(path: Path) -> tuple[Int64s, Int64s, Int64s]:
    samples = read_shard(path)
    starts, sizes, labels = (np.array(c, dtype=np.int64) for c in (samples.starts, samples.sizes, samples.labels))
    return starts, sizes, labels


def _read_index(root: Path, part: str) -> Index | None:
    found = []
    for path in places(root, f"shards-{part}"):
        try:
            found.append((path.stat().st_mtime_ns, open_index(path, KIND)))
        except FileNotFoundError:
            continue
        except DamagedIndex as error:
            log.warning("%s: not used (%s); the shards are read anew", path, error)
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _known(old: Index) -> dict[tuple[str, int, int], tuple[Int64s, Int64s, Int64s]]:
    """The columns of each shard of an index, by its name, size and time."""
    known, first = {}, 0
    for shard in old.facts["shards"]:
        rows = slice(first, first + shard["samples"])
        columns = (old.arrays["starts"][rows], old.arrays["sizes"][rows], old.arrays["labels"][rows])
        known[shard["name"], shard["size"], shard["time"]] = columns
        first = rows.stop
    return known


def _class_names(path: Path, classes: int) -> list[str]:
    if not path.is_file():
        return [str(label) for label in range(classes)]
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if len(names) < classes:
        raise VitcoreError(f"{path}: it names {len(names)} classes, the shards hold {classes}; write a line a class")
    return names
