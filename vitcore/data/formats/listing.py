"""The listing of one split's pictures as arrays, tens of bytes a picture, and its index, which spares the next run the walk.

Large listings are kept in an index file and memory-mapped from there. Each folder's times are compared when it is opened; a
class with a folder that changed is walked again, the others are taken over. No torch.
"""

from __future__ import annotations

import logging
import os
import time
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vitcore.data.formats.index import DamagedIndex, Index, open_index, places, write_index
from vitcore.data.formats.walk import Disk, Found, Stamp, unchanged, walk
from vitcore.data.order import Int64s

log = logging.getLogger("vitcore")

KIND = "folders of pictures, 1"
# Below so many pictures a walk takes less than a blink, and no index is written.
INDEX_FROM = 10_000
# Some file systems' clocks tick in seconds.
SETTLE_NS = 3_000_000_000


class Listing:
    """The pictures of one split, in order: picture i is of class `labels[i]`. Its pickle is small where it has an index."""

    def __init__(self, folder: str, index: Index) -> None:
        self.folder, self.index = folder, index
        self.class_names: list[str] = [c["name"] for c in index.facts["classes"]]
        self._names, self._starts = index.arrays["names"], index.arrays["starts"]
        self.labels: Int64s = index.arrays["labels"]

    def __reduce__(self) -> tuple[Any, ...]:
        return Listing, (self.folder, self.index)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def others(self) -> int:
        """Files that are no pictures."""
        return sum(c["others"] for c in self.index.facts["classes"])

    def path(self, index: int) -> str:
        """The path of a picture."""
        name = self._names[self._starts[index] : self._starts[index + 1]].tobytes()
        return os.path.join(self.folder, self.class_names[self.labels[index]], os.fsdecode(name))


def list_split(root: Path, part: str, classes: list[str], disk: Disk) -> Listing:
    """The pictures of `root/part`, whose class folders are `classes`; the index is read, and written where it pays.

    Raises VitcoreError for folders that cannot be listed.
    """
    folder = str(root / part)
    old = _read(root, part)
    began = time.time_ns()
    kept = {} if old is None else _kept(old, folder, classes, disk)
    if old is not None and len(kept) == len(classes) == len(old.facts["classes"]):
        return Listing(folder, old)
    new = _Builder(began)
    for name in classes:
        if name in kept:
            new.take(*kept[name])
        else:
            new.add(name, walk(os.path.join(folder, name), disk))
    made = new.index()
    return Listing(folder, made if len(made.arrays["labels"]) < INDEX_FROM else _written(root, part, made))


def _read(root: Path, part: str) -> Index | None:
    """The newest index that is whole."""
    found = []
    for path in places(root, part):
        try:
            found.append(open_index(path, KIND))
        except FileNotFoundError:
            continue
        except DamagedIndex as error:
            log.warning("%s: not used (%s); the folders are listed anew", path, error)
    return max(found, key=lambda index: index.facts["listed"], default=None)


def _written(root: Path, part: str, made: Index) -> Index:
    problems = []
    for path in places(root, part):
        try:
            return write_index(path, KIND, made.facts, made.arrays)
        except (OSError, DamagedIndex) as error:
            problems.append(f"{path.parent} ({getattr(error, 'strerror', None) or error})")
    log.warning(
        "the listing of %s could not be kept in %s; the next run lists it anew", root / part, " or ".join(problems)
    )
    return made


class _Builder:
    """Puts classes together, some from a walk and some from an older index."""

    def __init__(self, began: int) -> None:
        self._began = began
        self._classes: list[dict[str, Any]] = []
        self._names, self._lengths = bytearray(), array("q")
        self._folders, self._stamps = list[bytes](), list[Stamp]()

    def add(self, name: str, found: Found) -> None:
        """A class that was walked."""
        names = [os.fsencode(picture) for picture in found.pictures]
        self._lengths.extend(map(len, names))
        self._names += b"".join(names)
        self._note(name, len(names), found.others, found.folders)

    def take(self, old: Index, about: dict[str, Any], first: int, folders: list[tuple[str, Stamp]]) -> None:
        """A class of the index `old`, whose first picture is `first`."""
        starts = old.arrays["starts"][first : first + about["pictures"] + 1]
        self._lengths.frombytes(np.diff(starts).astype(np.int64, copy=False).tobytes())
        self._names += old.arrays["names"][starts[0] : starts[-1]].tobytes()
        self._note(about["name"], about["pictures"], about["others"], folders)

    def _note(self, name: str, pictures: int, others: int, folders: Iterable[tuple[str, Stamp]]) -> None:
        before = len(self._stamps)
        for inner, stamp in folders:
            self._folders.append(os.fsencode(inner))
            self._stamps.append(stamp)
        counts = {"pictures": pictures, "others": others, "folders": len(self._stamps) - before}
        self._classes.append({"name": name, **counts})

    def index(self) -> Index:
        """All of them, in memory."""
        starts = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(np.frombuffer(self._lengths, dtype=np.int64), out=starts[1:])
        labels = np.repeat(np.arange(len(self._classes)), [c["pictures"] for c in self._classes])
        return Index(
            {"classes": self._classes, "listed": self._began},
            {
                "names": np.frombuffer(self._names, dtype=np.uint8),
                "starts": starts,
                "labels": labels.astype(np.int64, copy=False),
                "folders": np.frombuffer(b"\0".join(self._folders), dtype=np.uint8),
                "stamps": np.array(self._stamps, dtype=np.int64).reshape(-1, 2),
            },
        )


def _kept(old: Index, folder: str, classes: Iterable[str], disk: Disk) -> dict[str, Any]:
    """What `_Builder.take` needs of each class whose folders are as they were."""
    wanted, kept = set(classes), {}
    names = os.fsdecode(old.arrays["folders"].tobytes()).split("\0")
    before = old.facts["listed"] - SETTLE_NS
    first = first_folder = 0
    for about in old.facts["classes"]:
        end = first_folder + about["folders"]
        stamps = [Stamp(*times) for times in old.arrays["stamps"][first_folder:end].tolist()]
        own = list(zip(names[first_folder:end], stamps, strict=True))
        if about["name"] in wanted and unchanged(os.path.join(folder, about["name"]), own, before, disk):
            kept[about["name"]] = (old, about, first, own)
        first, first_folder = first + about["pictures"], end
    return kept
