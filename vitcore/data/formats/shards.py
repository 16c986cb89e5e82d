"""Finding the samples in a tar shard, as the `webdataset` library writes it: which bytes are a picture, and of which class. No
picture is read, and no torch imported.

Files that follow each other and have the same name up to the first dot are a sample: `000017.jpg`, `000017.cls`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vitcore.errors import VitcoreError

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif")
CLASS = "cls"
_BLOCK = tarfile.BLOCKSIZE
_LONGEST_LABEL = 20


@dataclass
class Samples:
    """The samples of a shard, in its order: where each picture begins, its size in bytes, and its class."""

    starts: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


@dataclass
class _Sample:
    key: str
    picture: tuple[int, int] | None = None
    label: int | None = None


def read_shard(path: Path) -> Samples:
    """Read the headers of a shard, and the labels. VitcoreError, which names shard and sample, for one that is cut or damaged,
    or compressed (its bytes then have no place), and for a sample without picture or class."""
    found = Samples()
    try:
        with open(path, "rb") as file:
            if file.read(3) in (b"\x1f\x8b\x08", b"BZh", b"\xfd7z", b"\x28\xb5\x2f"):
                raise VitcoreError(
                    f"{path}: it is compressed, and a sample cannot be read from its middle; unpack it to a .tar"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                sample: _Sample | None = None
                for member in _members(path, tar):
                    key, extension = _split(member.name)
                    if key is None:
                        continue
                    if sample is None or sample.key != key:
                        _finish(path, sample, found)
                        sample = _Sample(key)
                    _note(path, tar, member, extension, sample)
                _finish(path, sample, found)
    except VitcoreError:
        raise
    # In a damaged shard, whatever the parser stumbles over.
    except Exception as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VitcoreError(f"{path}: it is no whole tar file ({reason}); fetch or write it again") from error
    if not found.labels:
        raise VitcoreError(f"{path}: it holds no samples ({', '.join(EXTENSIONS)} with {CLASS}); remove the shard")
    return found


def name_of(path: str, start: int) -> str:
    """The name of the picture whose bytes begin at `start`: its header is the block before. "" where that cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(start - _BLOCK)
            return tarfile.TarInfo.frombuf(file.read(_BLOCK), "utf-8", "surrogateescape").name
    except (OSError, tarfile.TarError, ValueError):
        return ""


def _members(path: Path, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The plain files, in order. tarfile takes a damaged header for the end: so the end is looked at, too."""
    place = -1
    for member in tar:
        if member.size < 0 or member.offset <= place or member.sparse is not None:
            raise VitcoreError(f"{path}: {member.name!r} is sparse, or lies where no file can; write the shard again")
        place = member.offset
        tar.members = []  # type: ignore[attr-defined]  # or it keeps all of them
        if member.isreg():
            yield member
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    if (end := file.read(_BLOCK)) != bytes(_BLOCK):
        what = "a damaged header" if end else "no end mark: it is cut off"
        raise VitcoreError(f"{path}: after {tar.offset} bytes there is {what}; fetch or write the shard again")


def _split(name: str) -> tuple[str | None, str]:
    """A sample's key and the lower-case extension; no key for files that webdataset passes over."""
    folder, slash, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
        return None, ""
    return f"{folder}{slash}{stem}", extension.lower()


def _note(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, sample: _Sample) -> None:
    if extension in EXTENSIONS:
        if sample.picture is not None:
            raise VitcoreError(f"{path}: sample {sample.key!r} has two pictures; leave one")
        sample.picture = (member.offset_data, member.size)
    elif extension == CLASS:
        content = tar.extractfile(member)
        text = b"" if content is None or member.size > _LONGEST_LABEL else content.read().strip()
        if sample.label is not None or not text.isdigit() or int(text) >= 1 << 31:
            raise VitcoreError(
                f"{path}: {member.name!r} is no class ({text[:20]!r}); write a whole number from 0 into it"
            )
        sample.label = int(text)


def _finish(path: Path, sample: _Sample | None, found: Samples) -> None:
    if sample is None or (sample.picture is None and sample.label is None):
        return  # files of another kind
    if sample.picture is None or sample.label is None:
        lacks = f"no .{CLASS}" if sample.label is None else f"no picture ({', '.join(EXTENSIONS)})"
        raise VitcoreError(f"{path}: sample {sample.key!r} has {lacks}; write both, one after the other")
    found.starts.append(sample.picture[0])
    found.sizes.append(sample.picture[1])
    found.labels.append(sample.label)
