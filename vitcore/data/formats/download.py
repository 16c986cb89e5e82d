"""Fetching a published file: to a temporary name, checked, and renamed only when it is whole. No torch."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vitcore.data.formats.bar import Bar
from vitcore.errors import VitcoreError

_CHUNK = 1 << 18
_SECONDS = 30


@dataclass(frozen=True)
class Published:
    """A file as its authors publish it: its size in bytes and the MD5 that they give."""

    url: str
    size: int
    md5: str

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.file_name} ({self.size / 1e6:.0f} MB, {self.url})"


def fetch(name: str, published: Published, folder: Path) -> Path:
    """The file in `folder`, fetched unless it is there; of several processes one fetches and the others wait for it.

    name: the data set's, for the message. Raises VitcoreError, and leaves no part of a file, where there is no network, no
    room, or what comes is not what was published.
    """
    path = folder / published.file_name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f".{published.file_name}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.is_file():
                _fetch(name, published, path)
            with suppress(OSError):
                os.unlink(lock.name)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise VitcoreError(
            f"{name}: {published.url} could not be fetched ({reason}); fetch it where there is a network and put it into {folder}"
        ) from error
    return path


def _fetch(name: str, published: Published, path: Path) -> None:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    try:
        digest, size = hashlib.md5(usedforsecurity=False), 0
        with (
            os.fdopen(handle, "wb") as file,
            urllib.request.urlopen(published.url, timeout=_SECONDS) as answer,
            Bar(f"fetching {path.name}", published.size, of_bytes=True) as bar,
        ):
            os.fchmod(file.fileno(), 0o644)
            # One byte more than there should be is enough to know.
            while size <= published.size and (piece := answer.read(_CHUNK)):
                file.write(piece)
                digest.update(piece)
                size += len(piece)
                bar.advance(len(piece))
            file.flush()
            os.fsync(file.fileno())
        if size != published.size or digest.hexdigest() != published.md5:
            got = f"{size} bytes" if size != published.size else f"MD5 {digest.hexdigest()}"
            wanted = f"{published.size}" if size != published.size else published.md5
            raise VitcoreError(
                f"{name}: what {published.url} sends is not the published file ({got}, not {wanted}); try again, or put the "
                f"file into {path.parent} yourself"
            )
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
