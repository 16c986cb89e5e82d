"""Writing a cache (`vitcore.data.formats.cached`): each picture of a data set decoded, resized and stored once.

It is written under another name and renamed when it is whole, so a folder of the final name is a finished cache.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import simplejpeg
import torch

from vitcore.data import jpeg
from vitcore.data.datasets import open_dataset
from vitcore.data.decode import UnreadablePicture, decode, picture_into
from vitcore.data.formats.cached import PARTS, ROW, VERSION, digest
from vitcore.data.loading.cores import usable_cores
from vitcore.data.pictures import PictureSplit
from vitcore.data.resize import is_transposed
from vitcore.data.source import Source
from vitcore.data.view import View
from vitcore.errors import VitcoreError

if TYPE_CHECKING:
    from vitcore.data.formats.cached import Cache

log = logging.getLogger("vitcore")

# Pictures of each part that are encoded first, to see whether there is room for all.
SAMPLE = 32
# Pictures in hand for each thread; raw ones at full size have 36 MB and more.
_IN_HAND = 4


@dataclass(frozen=True)
class Part:
    """What cache.json says of a part: pictures held and left out, bytes of the pictures, digest of the index."""

    count: int
    left_out: int
    bytes: int
    digest: str


class Stored(NamedTuple):
    """A picture as the cache holds it."""

    data: bytes
    height: int
    width: int


def write_cache(asked: Cache) -> list[str]:
    """Write the cache; what is to be said about it, a line each. VitcoreError for settings, data and disks that do not do."""
    if asked.side is not None and asked.side < 1:
        raise VitcoreError(f"--side {asked.side} must be at least 1; give the shorter side in pixels, or None")
    if not 1 <= asked.quality <= 100:
        raise VitcoreError(f"--quality {asked.quality} is out of range: it must be from 1 to 100")
    output = Path(asked.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise VitcoreError(f"{output}: exists already; remove it, or give another --output")
    if asked.dataset in ("digits", "digits-tune", "synthetic", "cached"):
        raise VitcoreError(f"{asked.dataset}: these pictures are not in files to be decoded; there is nothing to cache")
    dataset = open_dataset(asked.dataset, img_size=asked.side or 224, data_path=asked.data_path)
    sources = []
    for split in (dataset.train, dataset.eval):
        if not isinstance(split, PictureSplit):
            raise VitcoreError(
                f"{asked.dataset}: these pictures are not in files to be decoded; there is nothing to cache"
            )
        sources.append(split.source)
    workers = usable_cores() if asked.workers == "auto" else max(1, asked.workers)
    partial = output.with_name(output.name + ".partial")
    with _alone(partial), ThreadPoolExecutor(workers) as pool:
        try:
            _check_room(sources, asked, dataset.channels, partial, pool)
            parts = {
                part: _write_part(partial, part, source, asked, dataset.channels, pool, _IN_HAND * workers)
                for part, source in zip(PARTS, sources)
            }
            told = {
                "vitcore_cache": VERSION, "kind": asked.format, "channels": dataset.channels,
                "class_names": dataset.class_names, "dataset": asked.dataset, "data_path": asked.data_path,
                "side": asked.side, "quality": asked.quality if asked.format == "jpeg" else None,
                **{part: asdict(found) for part, found in parts.items()},
            }  # fmt: skip
            with open(partial / "cache.json", "w", encoding="utf-8") as file:
                json.dump(told, file, indent=1)
                _sync(file)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise VitcoreError(
                    f"{partial}: no room is left on the disk; free some, or give a smaller --side"
                ) from error
            raise VitcoreError(f"{error.filename or partial}: {error.strerror}; give another --output") from error
        (partial / "lock").unlink()
        partial.rename(output)
    return [
        f"{output}: {part} {found.count:,} pictures, {found.bytes / 1e6:,.1f} MB"
        + (f"; {found.left_out:,} could not be read and are left out" if found.left_out else "")
        for part, found in parts.items()
    ] + [f"train with --dataset cached --data_path {output}"]


def store(stored: bytes | memoryview | np.ndarray, channels: int, kind: str, side: int | None, quality: int) -> Stored:
    """One picture, upright, its shorter side at most `side` pixels, as raw pixels or as a JPEG. UnreadablePicture.

    A plain JPEG that is small enough is kept as it is: encoding it once more would only lose.
    """
    header = None if isinstance(stored, np.ndarray) else jpeg.read_header(stored)
    if header is not None:
        height, width = header.height, header.width
        if is_transposed(header.orientation):
            height, width = width, height
    else:
        if not isinstance(stored, np.ndarray):
            stored = decode(stored).numpy()
        height, width = stored.shape[1:]
    scale = 1.0 if side is None else min(1.0, side / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    out_CHW = torch.empty((channels, *size), dtype=torch.uint8)
    picture_into(out_CHW, stored, View(size=size, channels=channels, interpolation="bicubic"))
    if kind == "jpeg" and scale == 1.0 and header is not None and header.orientation == 1:
        return Stored(bytes(stored), *size)
    out_HWC = np.ascontiguousarray(out_CHW.permute(1, 2, 0).numpy())
    if kind == "jpeg":
        space, colours = ("GRAY", "Gray") if channels == 1 else ("RGB", "420")
        return Stored(simplejpeg.encode_jpeg(out_HWC, quality, space, colours), *size)
    return Stored(out_HWC.tobytes(), *size)


def _write_part(
    folder: Path, part: str, source: Source, asked: Cache, channels: int, pool: ThreadPoolExecutor, in_hand: int
) -> Part:
    """Write one part's three files; what cache.json says of it."""

    def one(index: int) -> Stored | UnreadablePicture:
        try:
            return store(source.read(index), channels, asked.format, asked.side, asked.quality)
        except UnreadablePicture as error:
            return error

    rows = np.zeros(len(source), ROW)
    kept = at = name_at = 0
    said, tenth = 0, max(1, len(source) // 10)
    with open(folder / f"{part}.pictures", "wb") as pictures, open(folder / f"{part}.names", "wb") as names:
        for first in range(0, len(source), in_hand):
            indices = range(first, min(first + in_hand, len(source)))
            for index, done in zip(indices, pool.map(one, indices)):
                where = source.where(index)
                if isinstance(done, UnreadablePicture):
                    log.warning("%s: not a readable picture (%s); left out", where, done)
                    continue
                name_at += names.write(where.encode("utf-8", "replace"))
                stop = at + pictures.write(done.data)
                rows[kept] = (at, stop, done.height, done.width, int(source.labels[index]), name_at)
                kept, at = kept + 1, stop
            if indices[-1] // tenth > said:
                said = indices[-1] // tenth
                log.info("%s: %d of %d pictures, %.1f MB", part, indices[-1] + 1, len(source), at / 1e6)
        if not kept:
            raise VitcoreError(f"{part}: none of the {len(source)} pictures can be read; check the data set")
        for file in (pictures, names):
            _sync(file)
    with open(folder / f"{part}.index.npy", "wb") as file:
        np.save(file, rows[:kept], allow_pickle=False)
        _sync(file)
    return Part(kept, len(source) - kept, at, digest(folder, part))


def _check_room(sources: list[Source], asked: Cache, channels: int, folder: Path, pool: ThreadPoolExecutor) -> None:
    """VitcoreError where a sample of the pictures says that all of them do not fit on the disk."""

    def size(source: Source, index: int) -> int | None:
        try:
            return len(store(source.read(index), channels, asked.format, asked.side, asked.quality).data)
        except UnreadablePicture:
            return None  # named when it is its turn

    expected = 0.0
    for source in sources:
        indices = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).astype(np.int64)).tolist()
        sizes = [found for found in pool.map(lambda i, source=source: size(source, i), indices) if found is not None]
        expected += len(source) * sum(sizes) / max(1, len(sizes))
    free = shutil.disk_usage(folder).free
    if expected > free:
        raise VitcoreError(
            f"{folder}: the cache will have about {expected / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free; give another "
            "--output, a smaller --side, or --format jpeg"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """The unfinished cache's folder, empty and held by this process; VitcoreError where another writes it."""
    ours = {"cache.json", *(f"{part}.{what}" for part in PARTS for what in ("pictures", "index.npy", "names"))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "wb")  # noqa: SIM115  (held until the end)
    except OSError as error:
        raise VitcoreError(f"{folder}: {error.strerror}; give another --output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise VitcoreError(
                f"{folder}: another process is writing this cache; wait, or give another --output"
            ) from None
        left = {entry.name for entry in folder.iterdir()} - {"lock"}
        if left - ours:
            raise VitcoreError(
                f"{folder}: holds files that are no unfinished cache's; remove it, or give another --output"
            )
        if left:
            log.info("%s: what an interrupted run has left is removed, and the cache is begun anew", folder)
        for name in left:
            (folder / name).unlink()
        yield


def _sync(file: IO[Any]) -> None:
    """See that what was written is on the disk before the folder gets its final name."""
    file.flush()
    os.fsync(file.fileno())
