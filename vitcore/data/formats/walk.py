"""Walking the folders of one class: its pictures, and what tells later that nothing has changed. No picture is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from vitcore.errors import VitcoreError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif")


class Stamp(NamedTuple):
    """What changes when a folder's entries do: both times in nanoseconds. The second cannot be set back, as programs that
    copy folders do with the first."""

    mtime: int
    ctime: int


class Disk(Protocol):
    """What a walk asks of a file system."""

    def stamp(self, folder: str) -> tuple[Stamp, tuple[int, int]]:
        """The folder's stamp, and its device and inode; links are followed."""
        ...

    def scan(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Each entry's name and whether it is a folder, in any order; links are followed."""
        ...


class LocalDisk:
    """The operating system's own."""

    def stamp(self, folder: str) -> tuple[Stamp, tuple[int, int]]:
        """See `Disk.stamp`."""
        found = os.stat(folder)
        return Stamp(found.st_mtime_ns, found.st_ctime_ns), (found.st_dev, found.st_ino)

    def scan(self, folder: str) -> Iterator[tuple[str, bool]]:
        """See `Disk.scan`."""
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name, entry.is_dir()


@dataclass(frozen=True)
class Found:
    """One class: sorted paths of its pictures, the number of other files, and each folder with its stamp; the paths are
    relative to the class folder, whose own is ""."""

    pictures: list[str]
    others: int
    folders: list[tuple[str, Stamp]]


def walk(folder: str, disk: Disk) -> Found:
    """The pictures under `folder`, at any depth, without hidden files and folders; links are followed.

    Raises VitcoreError for a folder that cannot be listed, and for a link to a folder above it.
    """
    pictures: list[str] = []
    folders: list[tuple[str, Stamp]] = []
    others = 0
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [("", frozenset())]
    while waiting:
        inner, above = waiting.pop()
        here = os.path.join(folder, inner) if inner else folder
        try:
            # Before the listing: a change during it is then seen the next time.
            stamp, identity = disk.stamp(here)
            if identity in above:
                raise VitcoreError(f"{here} is a link to a folder above it; remove the link")
            folders.append((inner, stamp))
            for name, is_folder in disk.scan(here):
                if name.startswith("."):
                    continue
                path = f"{inner}/{name}" if inner else name
                if is_folder:
                    waiting.append((path, above | {identity}))
                elif name.lower().endswith(EXTENSIONS):
                    pictures.append(path)
                else:
                    others += 1
        except OSError as error:
            raise VitcoreError(
                f"{here} cannot be listed ({error.strerror or error}); make it readable or remove it"
            ) from error
    pictures.sort()
    return Found(pictures, others, folders)


def unchanged(folder: str, folders: list[tuple[str, Stamp]], before: int, disk: Disk) -> bool:
    """Whether each folder still has its stamp, from before the time `before` in nanoseconds: one that was changed about
    when it was listed may have been changed afterwards within the same tick of the file system's clock."""
    try:
        return all(
            max(stamp) < before and disk.stamp(os.path.join(folder, inner) if inner else folder)[0] == stamp
            for inner, stamp in folders
        )
    except OSError:
        return False
