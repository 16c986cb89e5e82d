"""The cache: a data set's pictures, decoded and resized once, in two large files that are mapped into memory.

`vitcore data cache` writes it (`vitcore.data.formats.caching`). A folder holds

- cache.json: the format's version, raw or jpeg, channels, classes, and of each part the size and the digest of its files;
- train.pictures and val.pictures: the pictures one behind the other, raw ones as rows of pixels of RGB or grey;
- train.index.npy and val.index.npy: a row a picture (`ROW`); train.names and val.names: where each came from, in UTF-8.

Raw pictures are read without decoding: a training crop is a copy of a few rows and a resize.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitcore.commandline import parse
from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import UnreadablePicture
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

VERSION = 1
PARTS = ("train", "val")
# Of a picture: its bytes' first place and the place after the last, its size in pixels, its class, and where its name ends; it
# begins where the last one's ended.
ROW = np.dtype(
    [("start", "<i8"), ("stop", "<i8"), ("height", "<i4"), ("width", "<i4"), ("label", "<i8"), ("name", "<i8")]
)


class CachedPictures:
    """One part of a cache: a `vitcore.data.source.Source`. Pickled as its path; the files are mapped where they are read."""

    def __init__(self, root: Path, part: str, kind: str, channels: int) -> None:
        self._root, self._part, self._kind, self._channels = root, part, kind, channels
        self._map()
        self.labels: Int64s = np.ascontiguousarray(self._index["label"])

    def _map(self) -> None:
        self._index = np.load(self._root / f"{self._part}.index.npy", mmap_mode="r", allow_pickle=False)
        with open(self._root / f"{self._part}.pictures", "rb") as file:
            self._pictures = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def __getstate__(self) -> tuple[Path, str, str, int]:
        return self._root, self._part, self._kind, self._channels

    def __setstate__(self, state: tuple[Path, str, str, int]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._index)

    def read(self, index: int) -> memoryview | npt.NDArray[np.uint8]:
        """The picture as a view of the mapped file: uint8 (C, H, W), or the JPEG's bytes."""
        start, stop, height, width, _, _ = self._index[index].item()
        stored = self._pictures[start:stop]
        if self._kind == "jpeg":
            return stored
        if len(stored) != height * width * self._channels:  # the file was cut off while it was in use
            raise UnreadablePicture("the cache's file is shorter than its index says")
        return np.frombuffer(stored, np.uint8).reshape(height, width, self._channels).transpose(2, 0, 1)

    def where(self, index: int) -> str:
        """The file of the cache, the place in it, and where the picture came from."""
        first = int(self._index[index - 1]["name"]) if index else 0
        names = (self._root / f"{self._part}.names").read_bytes()
        name = names[first : int(self._index[index]["name"])].decode("utf-8", "replace")
        return f"{self._root / self._part}.pictures: picture {index} (from {name})"


def open_cached(options: DatasetOptions) -> PictureSet:
    """Open a cache; VitcoreError for a folder that holds none, or one that is damaged or of another version."""
    root = options.data_path
    if root is None:
        raise VitcoreError(f"{options.name}: no data path; give the folder that vitcore data cache has written")
    told = read_description(root)
    parts = [_open_part(root, part, told) for part in PARTS]
    return open_pictures(options, list(told["class_names"]), parts[0], parts[1], channels=told["channels"])


def read_description(root: Path) -> dict[str, Any]:
    """cache.json; VitcoreError where it is missing, damaged, or of another version."""
    path = root / "cache.json"
    try:
        told = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise VitcoreError(
            f"{root}: no finished cache of pictures (cache.json is missing); write one with vitcore data cache --output {root}"
        ) from None
    except (OSError, ValueError) as error:
        raise VitcoreError(f"{path}: not readable ({error}); write the cache anew") from error
    version = told.get("vitcore_cache") if isinstance(told, dict) else None
    if version != VERSION:
        what = "is no description of a cache" if version is None else f"is of version {version}, and this is {VERSION}"
        raise VitcoreError(f"{path}: it {what}; write the cache anew with vitcore data cache")
    plain = {"kind": str, "channels": int, "class_names": list, "train": dict, "val": dict}
    wrong = [name for name, kind in plain.items() if not isinstance(told.get(name), kind)]
    if wrong or told["kind"] not in ("raw", "jpeg") or told["channels"] not in (1, 3):
        raise VitcoreError(f"{path}: its {', '.join(wrong) or 'kind or channels'} is damaged; write the cache anew")
    return told


def digest(root: Path, part: str) -> str:
    """The digest of a part's index and names."""
    total = hashlib.sha256()
    for name in (f"{part}.index.npy", f"{part}.names"):
        total.update((root / name).read_bytes())
    return total.hexdigest()


def _open_part(root: Path, part: str, told: dict[str, Any]) -> CachedPictures:
    pictures = root / f"{part}.pictures"
    try:
        size, found = pictures.stat().st_size, digest(root, part)
    except OSError as error:
        raise VitcoreError(
            f"{error.filename}: {error.strerror}; write the cache anew with vitcore data cache"
        ) from error
    if found != told[part].get("digest"):
        raise VitcoreError(
            f"{root / part}.index.npy: the index is not the one that cache.json describes; write the cache anew"
        )
    if size != told[part].get("bytes"):
        raise VitcoreError(
            f"{pictures}: {size} bytes, and cache.json says {told[part].get('bytes')}; copy the file again, or write the "
            "cache anew"
        )
    return CachedPictures(root, part, told["kind"], told["channels"])


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What is cached, where and how."""

    dataset: str
    """Data set of pictures: folder, imagenet1K, cifar10, cifar100, idx, webdataset, or hf:NAME."""
    data_path: str | None = None
    """Folder of the data set's files."""
    output: str
    """Folder to write; a run then takes --dataset cached --data_path OUTPUT."""
    format: Literal["raw", "jpeg"] = "raw"
    """raw: pixels, which are not decoded again, 3 bytes each; jpeg: encoded again, about a tenth of that."""
    side: int | None = 256
    """Length of the shorter side in pixels, of those that are larger; None keeps every size."""
    quality: int = 92
    """Quality of format jpeg, 1 to 100; 90 to 95 is hardly visible."""
    workers: int | Literal["auto"] = "auto"
    """Threads that decode and encode."""


def main(argv: Sequence[str]) -> int:
    """Decode and resize the pictures of a data set once, into files that are read faster. Unreadable ones are named and left
    out. An interrupted cache is begun anew."""
    asked = parse(Cache, argv, "vitcore data cache", main.__doc__ or "")
    from vitcore.data.formats.caching import write_cache

    for line in write_cache(asked):
        print(line)
    return 0
