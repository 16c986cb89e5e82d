"""Sorting ImageNet 2012 as it is published into `train/<class>/` and `val/<class>/`, which `--dataset imagenet1K` reads.

A class of training pictures is unpacked under a hidden name and renamed when it is whole; so is `val/`. What was begun is gone
on with after a kill, and what is done is counted and left. Nothing of the archives is trusted: a name that is not a picture's
of its class is refused, so nothing is written anywhere else. No torch.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from vitcore.data.formats.bar import Bar
from vitcore.data.formats.devkit import ARCHIVE, FOLDER, Devkit, find_devkit, read_devkit
from vitcore.data.formats.folder import IMAGENET_FILES, IMAGENET_SITE
from vitcore.errors import VitcoreError

TRAIN_ARCHIVE, TRAIN_FOLDER = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_train"
VAL_ARCHIVE, VAL_FOLDER = "ILSVRC2012_img_val.tar", "ILSVRC2012_img_val"
_VAL_PICTURE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")
# What a small file takes of a disk beyond its bytes, at most.
_PER_FILE = 4096


@dataclass(frozen=True)
class Sorted:
    """What there is now: classes and pictures of both splits, as the development kit counts them."""

    classes: int
    train: int
    val: int


@dataclass(frozen=True)
class _Source:
    """Where a split's pictures are: in an archive, or, of training the archives and of validation the pictures, in a folder."""

    tar: Path | None
    folder: Path | None


def prepare_imagenet(root: Path) -> Sorted:
    """Sort what lies in `root`; may be called again at any time. Raises VitcoreError for files that are missing, damaged or
    hostile, too little room, and counts that are not the kit's."""
    if not root.is_dir():
        raise VitcoreError(f"imagenet: {root} is not a folder; give the one that holds {IMAGENET_FILES}")
    place = find_devkit(root)
    if place is None:
        raise VitcoreError(
            f"imagenet: {root} holds no {ARCHIVE} and no {FOLDER}/; fetch it from {IMAGENET_SITE} into it"
        )
    kit = read_devkit(place)
    with _alone(root):
        waiting = [wnid for wnid in kit.train if not (root / "train" / wnid).is_dir()]
        _count(root / "train", {wnid: count for wnid, count in kit.train.items() if wnid not in waiting})
        train = _train_source(root) if waiting else None
        val = _val_source(root, kit)
        with ExitStack() as opened:
            archives = {} if train is None else _class_archives(train, waiting, opened)
            _check_room(root, archives, [] if val is None or val.folder else [val.tar])
            with Bar("sorting the training classes", sum(a.size for a in archives.values()), of_bytes=True) as bar:
                for wnid, archive in archives.items():
                    _unpack_class(root / "train", wnid, archive, kit.train[wnid], bar)
        if val is not None:
            _sort_val(root, val, kit)
    return Sorted(len(kit.train), _count(root / "train", kit.train), _count(root / "val", kit.val_counts))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    try:
        with open(root / ".prepare.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.unlink(lock.name)
    except BlockingIOError:
        raise VitcoreError(f"imagenet: {root} is being sorted by another process; wait for it") from None
    except OSError as error:
        what = error.filename or root
        raise VitcoreError(
            f"imagenet: {what}: {error.strerror or error}; make room or the folder writable, and run it again"
        ) from error


@dataclass(frozen=True)
class _Archive:
    """The tar of one class: how it is opened, and its size in bytes."""

    open: Callable[[], AbstractContextManager[IO[bytes] | None]]
    size: int
    name: str


def _train_source(root: Path) -> _Source:
    if (root / TRAIN_ARCHIVE).is_file():
        return _Source(root / TRAIN_ARCHIVE, None)
    for folder in (root / TRAIN_FOLDER, root / "train", root):
        if any(folder.glob("n*.tar")):
            return _Source(None, folder)
    raise VitcoreError(f"imagenet: {root} lacks training classes, and holds neither {TRAIN_ARCHIVE} (138 GB) nor the archives "
                       f"of classes, n01440764.tar and so on; fetch it from {IMAGENET_SITE} into it")  # fmt: skip


def _val_source(root: Path, kit: Devkit) -> _Source | None:
    """Where the validation pictures are; None when they are sorted."""
    folder = root / "val"
    flat = folder.is_dir() and any(_VAL_PICTURE.fullmatch(entry.name) for entry in os.scandir(folder))
    if flat:
        return _Source(None, folder)
    if folder.is_dir() and any(folder.iterdir()):
        return None  # to be counted
    if (root / VAL_ARCHIVE).is_file():
        return _Source(root / VAL_ARCHIVE, None)
    if (root / VAL_FOLDER).is_dir():
        return _Source(None, root / VAL_FOLDER)
    raise VitcoreError(f"imagenet: {root} holds neither {VAL_ARCHIVE} (6.3 GB) nor its pictures in {VAL_FOLDER}/; fetch it from "
                       f"{IMAGENET_SITE} into it")  # fmt: skip


def _class_archives(source: _Source, waiting: list[str], opened: ExitStack) -> dict[str, _Archive]:
    """The archives of the classes that wait, by class, in their order; VitcoreError where one is missing."""
    found: dict[str, _Archive] = {}
    if source.tar is not None:
        with _reading(source.tar):
            tar = opened.enter_context(tarfile.open(source.tar, "r:"))  # noqa: SIM115  (the stack closes it)
            for member in tar:
                wnid = member.name.removeprefix("./").removesuffix(".tar")
                if not member.isreg() or not re.fullmatch(r"n\d{8}", wnid):
                    raise VitcoreError(f"{source.tar}: {member.name!r} is no archive of a class; fetch it again")
                inner = partial(lambda m: nullcontext(tar.extractfile(m)), member)
                found[wnid] = _Archive(inner, member.size, f"{source.tar}: {member.name}")
    else:
        assert source.folder is not None
        for wnid in waiting:
            path = source.folder / f"{wnid}.tar"
            if path.is_file():
                found[wnid] = _Archive(partial(_opened, path), path.stat().st_size, str(path))
    missing = [wnid for wnid in waiting if wnid not in found]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise VitcoreError(
            f"{source.tar or source.folder}: it lacks the archives of {shown}; fetch {TRAIN_ARCHIVE} again"
        )
    return {wnid: found[wnid] for wnid in found if wnid in set(waiting)}


def _opened(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _check_room(root: Path, archives: dict[str, _Archive], others: list[Path | None]) -> None:
    needed = sum(archive.size for archive in archives.values()) + sum(p.stat().st_size for p in others if p is not None)
    # The pictures are about 100 KB each.
    needed += needed // 100_000 * _PER_FILE
    done = sum(f.stat().st_size for f in (root / ".val.partial").rglob("*.JPEG")) if others else 0
    free = shutil.disk_usage(root).free
    if needed - done > free:
        raise VitcoreError(f"imagenet: {root} needs {(needed - done) / 1e9:.1f} GB more and has {free / 1e9:.1f} GB free; make "
                           "room there and run it again")  # fmt: skip


def _unpack_class(train: Path, wnid: str, archive: _Archive, expected: int, bar: Bar) -> None:
    hidden = train / f".{wnid}.partial"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    picture, count = re.compile(rf"{wnid}_\d+\.JPEG"), 0
    unpacked = 0
    with _reading(archive.name), archive.open() as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            name = member.name.removeprefix("./")
            content = tar.extractfile(member) if member.isreg() else None
            if content is None or not picture.fullmatch(name) or (hidden / name).exists():
                raise VitcoreError(
                    f"{archive.name}: {member.name!r} is no picture of the class; the archive is damaged or hostile"
                )
            with open(hidden / name, "xb") as out:
                shutil.copyfileobj(content, out)
            count += 1
            unpacked += member.size
            bar.advance(member.size)
    if count != expected:
        raise VitcoreError(
            f"{archive.name}: it holds {count} pictures, {expected} are published; fetch {TRAIN_ARCHIVE} again"
        )
    os.rename(hidden, train / wnid)
    bar.advance(archive.size - unpacked)


def _sort_val(root: Path, source: _Source, kit: Devkit) -> None:
    if source.folder == root / "val":
        for path in sorted(source.folder.iterdir()):
            if not path.is_dir() and not path.name.startswith("."):
                target = source.folder / _class_of(str(path), path.name, kit)
                target.mkdir(exist_ok=True)
                os.rename(path, target / path.name)
        return
    hidden = root / ".val.partial"
    with Bar("sorting the validation pictures", len(kit.val)) as bar:
        for wnid in kit.val_counts:
            (hidden / wnid).mkdir(parents=True, exist_ok=True)
        if source.tar is not None:
            with _reading(source.tar), tarfile.open(source.tar, "r:") as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    content = tar.extractfile(member) if member.isreg() else None
                    target = hidden / _class_of(f"{source.tar}: {member.name!r}", name, kit, content is not None) / name
                    if content is not None and not (target.is_file() and target.stat().st_size == member.size):
                        with open(target, "wb") as out:
                            shutil.copyfileobj(content, out)
                    bar.advance(1)
        else:
            assert source.folder is not None
            for path in sorted(p for p in source.folder.iterdir() if not p.name.startswith(".")):
                _place(path, hidden / _class_of(str(path), path.name, kit, path.is_file()) / path.name)
                bar.advance(1)
    _count(hidden, kit.val_counts, f"fetch {VAL_ARCHIVE} again")
    if (root / "val").is_dir():
        (root / "val").rmdir()  # it is empty
    os.rename(hidden, root / "val")


def _place(path: Path, target: Path) -> None:
    """A second name of the file where the file system can; else a copy."""
    if target.is_file() and target.stat().st_size == path.stat().st_size:
        return
    target.unlink(missing_ok=True)
    try:
        if path.is_symlink():
            raise OSError("a link's target may move")
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def _class_of(where: str, name: str, kit: Devkit, is_file: bool = True) -> str:
    match = _VAL_PICTURE.fullmatch(name)
    number = int(match[1]) if match else 0
    if not is_file or not 1 <= number <= len(kit.val):
        raise VitcoreError(f"{where} is none of the {len(kit.val)} validation pictures; the archive is damaged or hostile, or "
                           "the file does not belong there")  # fmt: skip
    return kit.val[number - 1]


def _count(folder: Path, expected: dict[str, int], remedy: str = "remove the folder and run it again") -> int:
    """The pictures below `folder`; VitcoreError for the first class that has not as many as are published."""
    total = 0
    for wnid, count in expected.items():
        try:
            found = sum(entry.name.endswith(".JPEG") for entry in os.scandir(folder / wnid))
        except FileNotFoundError:
            found = 0
        if found != count:
            raise VitcoreError(f"{folder / wnid}: it holds {found} pictures, {count} are published; {remedy}")
        total += found
    return total


@contextmanager
def _reading(place: Path | str) -> Iterator[None]:
    """One error for all that an archive may be damaged by; those of the disk that is written to stay theirs."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise VitcoreError(f"{place}: it is no whole tar file ({error}); fetch it again") from error
