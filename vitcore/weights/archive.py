"""Zip archives, checked before anything in them is read: of arrays (npz), or torch's (pth)."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitcore.errors import VitcoreError
from vitcore.weights.files import WeightFile

MOST_MEMBERS = 20_000
# Uncompressed bytes that a file may unpack to: weights hardly compress, but a head of zeros does.
FREE, TIMES = 64 << 20, 8
_CHUNK = 1 << 20
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class Member:
    """One file of an archive: where its bytes lie, how many there are packed and unpacked, and their checksum."""

    name: str
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


@dataclass(frozen=True)
class Archive:
    """A zip whose directory was found sound: every member inside the file, none over another, none too large."""

    path: Path
    members: dict[str, Member]

    def head(self, member: Member, count: int) -> bytes:
        """The first bytes of a member, unpacked."""
        return b"".join(self._blocks(member, min(count, member.size)))[:count]

    def read_into(self, member: Member, skip: int, out: memoryview) -> None:
        """Unpack all but the first `skip` bytes of a member into `out`, checking length and checksum."""
        crc, at = 0, -skip
        if not member.deflated and skip <= _CHUNK:
            with self.path.open("rb", buffering=0) as file:
                file.seek(member.start)
                crc = zlib.crc32(file.read(skip))
                while at + skip < len(out):
                    got = file.readinto(out[at + skip :])
                    if not got:
                        break
                    at += got
            at += skip
            # In pieces, whose checksums other threads may run beside.
            for i in range(0, at, _CHUNK):
                crc = zlib.crc32(out[i : min(i + _CHUNK, at)], crc)
        else:
            for block in self._blocks(member, member.size):
                crc = zlib.crc32(block, crc)
                cut = block[max(-at, 0) :]
                if cut:
                    begin = max(at, 0)
                    out[begin : begin + len(cut)] = cut
                at += len(block)
        if at != len(out) or crc != member.crc:
            what = (
                "its checksum does not match" if at == len(out) else f"it ends after {max(at, 0)} of {len(out)} bytes"
            )
            raise VitcoreError(f"{self.path}: array {_key(member.name)!r}: {what}; the file is damaged: fetch it again")

    def _blocks(self, member: Member, count: int) -> Iterator[bytes]:
        """Unpacked bytes in blocks, until at least `count` or all of them are out."""
        unpacker = zlib.decompressobj(-15) if member.deflated else None
        given, left = 0, member.packed
        try:
            with self.path.open("rb") as file:
                file.seek(member.start)
                waiting = b""
                while given < count:
                    if not waiting:
                        waiting = file.read(min(_CHUNK, left))
                        left -= len(waiting)
                        if not waiting:
                            return
                    if unpacker is None:
                        block, waiting = waiting, b""
                    else:
                        # Never more than was announced, whatever is packed behind it.
                        block = unpacker.decompress(waiting, min(_CHUNK, member.size - given))
                        waiting = unpacker.unconsumed_tail
                        if not block and (unpacker.eof or not waiting) and not left:
                            return
                    given += len(block)
                    yield block
        except zlib.error as e:
            raise VitcoreError(
                f"{self.path}: array {_key(member.name)!r} cannot be unpacked ({e}); the file is damaged: fetch it again"
            ) from e


def open_zip(path: Path) -> WeightFile:
    """An npz, or a file of torch."""
    archive = check(path)
    if any(name.rpartition("/")[2] == "data.pkl" for name in archive.members):
        from vitcore.weights import pth

        return pth.open_pth(archive)
    from vitcore.weights import npz

    return npz.open_npz(archive)


def check(path: Path) -> Archive:
    """The archive's directory, held against the file; VitcoreError that names the member that breaks a rule."""

    def refuse(name: str | None, why: str) -> VitcoreError:
        member = f"array {_key(name)!r} " if name is not None else ""
        return VitcoreError(f"{path}: {member}{why}; the file is hostile, damaged or cut short: fetch it again")

    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as file:
            infos = file.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error, OSError) as e:
        raise refuse(None, f"it is no whole zip archive ({e})") from e
    if len(infos) > MOST_MEMBERS:
        raise refuse(None, f"it holds {len(infos)} members, where {MOST_MEMBERS} are the most that weights have")
    if len({i.filename for i in infos}) != len(infos):
        twice = next(i.filename for n, i in enumerate(infos) if i.filename in {j.filename for j in infos[:n]})
        raise refuse(twice, "is there twice")
    total = sum(i.file_size for i in infos)
    if total > FREE + TIMES * size:
        biggest = max(infos, key=lambda i: i.file_size)
        raise refuse(biggest.filename, f"and the others unpack to {total} bytes from {size}: a zip bomb, as weights hardly "
                     f"compress")  # fmt: skip
    members: dict[str, Member] = {}
    with path.open("rb") as raw:
        for info in infos:
            if why := _forbidden(info):
                raise refuse(info.filename, why)
            start = _data_start(raw.fileno(), info, refuse)
            if start + info.compress_size > size:
                raise refuse(info.filename, "reaches beyond the end of the file")
            members[info.filename] = Member(info.filename, start, info.compress_size, info.file_size, info.CRC,
                                            info.compress_type == zipfile.ZIP_DEFLATED)  # fmt: skip
    end = 0
    for member in sorted(members.values(), key=lambda m: m.start):
        if member.start < end:
            raise refuse(member.name, "lies over another")
        end = member.start + member.packed
    return Archive(path, members)


def _key(name: str) -> str:
    return name.removesuffix(".npy")


def _forbidden(info: zipfile.ZipInfo) -> str | None:
    """Why a member is not looked at."""
    name = info.filename
    if not name.isprintable() or name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return "has a name that is no name of an array"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed by method {info.compress_type}, where stored and deflated are known"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return f"is stored in {info.compress_size} bytes that are said to be {info.file_size}"
    return None


def _data_start(descriptor: int, info: zipfile.ZipInfo, refuse: Callable[[str | None, str], VitcoreError]) -> int:
    """Where a member's bytes begin, by the header before them, which must agree with the directory."""
    raw = os.pread(descriptor, _LOCAL.size, info.header_offset) if info.header_offset >= 0 else b""
    if len(raw) == _LOCAL.size:
        magic, _, flags, method, _, _, _, _, _, name, extra = _LOCAL.unpack(raw)
        begin = info.header_offset + _LOCAL.size
        encoded = os.pread(descriptor, name, begin)
        text = encoded.decode("utf-8" if flags & 0x800 else "cp437", "replace")
        if magic == b"PK\x03\x04" and method == info.compress_type and text == info.orig_filename:
            return begin + name + extra
    raise refuse(info.filename, "has a header that does not agree with the archive's directory")
