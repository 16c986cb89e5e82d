"""A source whose pictures kill the process that reads them. A module of its own, so that worker processes can import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from vitcore.data.decode import UnreadablePicture

SIDE = 8


class Deadly:
    """`size` pictures of SIDE x SIDE as pixels, each of its index's colour.

    deaths: how often reading a picture kills the process, counted in files under `folder`. It never kills `spared`.
    unreadable: pictures that cannot be read. broken: a picture at which the source itself has a bug. seconds: what each
    picture takes.
    """

    def __init__(
        self,
        size: int,
        folder: Path | None = None,
        deaths: dict[int, int] | None = None,
        unreadable: tuple[int, ...] = (),
        broken: int = -1,
        seconds: float = 0.0,
        spared: int = 0,
    ) -> None:
        self.labels = np.arange(size, dtype=np.int64)
        self.folder, self.deaths, self.unreadable, self.broken, self.seconds = (
            folder,
            deaths,
            unreadable,
            broken,
            seconds,
        )
        self.spared = spared or os.getpid()

    def __len__(self) -> int:
        return len(self.labels)

    def where(self, index: int) -> str:
        return f"shelf/{index}.jpg"

    def read(self, index: int) -> np.ndarray:
        time.sleep(self.seconds)
        if self.deaths and index in self.deaths and self.folder is not None and os.getpid() != self.spared:
            path = self.folder / str(index)
            if (path.stat().st_size if path.exists() else 0) < self.deaths[index]:
                with path.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGSEGV if index % 2 else signal.SIGKILL)
        if index in self.unreadable:
            raise UnreadablePicture("it is blank")
        if index == self.broken:
            raise KeyError("a bug")
        return np.full((3, SIDE, SIDE), index % 251, dtype=np.uint8)
