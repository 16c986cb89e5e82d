"""What a format supplies: samples by index, as files' bytes or as pictures. Everything else is done once for all formats."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from vitcore.data.order import Int64s


class Source(Protocol):
    """The samples of one split, as they are stored. It is pickled to worker processes, so it holds no open file and no lock in
    its pickle, and little memory: what is large is a memory-mapped file, a shared tensor or an array of bytes."""

    @property
    def labels(self) -> Int64s:
        """The class of each sample, of shape (len(self),)."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | memoryview | npt.NDArray[np.uint8]:
        """The encoded file of a sample, or its picture as uint8 of shape (C, H, W) with C 1 or 3.

        Raises `vitcore.data.decode.UnreadablePicture` where there is nothing to read. Safe to call from several threads.
        """
        ...

    def where(self, index: int) -> str:
        """What a person finds the sample by: a path, `shard.tar: 000123.jpg`, `train-images.gz: picture 17`."""
        ...
