"""Who decodes: the calling thread, threads, or worker processes. The result is the same to the last bit."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from vitcore.data.loading.cores import usable_cores
from vitcore.data.loading.foreman import closed
from vitcore.data.loading.processes import Processes
from vitcore.data.loading.reading import Reader, Rows, Unread, Watch
from vitcore.data.source import Source
from vitcore.data.view import View

# With `auto`, so many workers are threads, more are processes. Threads start at once, processes after some three seconds of
# imports. But threads share one interpreter, with the training loop too, and of the 1.2 ms that a photograph of 500 x 375
# takes to 224 x 224, 0.2 to 0.3 ms hold it: two threads are as fast as two processes (0.73 and 0.77 ms an image, where one
# takes 1.2) and leave the loop its turn, four would hold it nearly always.
MOST_THREADS = 2


class Loader(Protocol):
    """Who decodes the pictures of a data set's splits."""

    @property
    def workers(self) -> int:
        """How many pictures are decoded at a time by others than the caller; 0: the caller decodes."""
        ...

    def start(self, *, policies: bool = False) -> None:
        """Begin what takes time before the first picture, and return. policies: whether they will change pictures."""
        ...

    def read(self, reader: Reader, rows: Rows) -> tuple[Tensor, list[Unread]]:
        """The pictures, uint8 (B, C, H, W), and the rows that are not what was asked for, in order.

        The memory belongs to the tensor that is returned: it is not written again while that, or a view of it, lives.
        Safe to call from several threads. Raises VitcoreError when closed meanwhile or when workers cannot go on, and
        what the source raises.
        """
        ...

    def close(self) -> None:
        """End the workers at once; may be called again, and reading starts them anew."""
        ...


class Inline:
    """The calling thread."""

    workers = 0

    def start(self, *, policies: bool = False) -> None:
        """Nothing to start."""

    def read(self, reader: Reader, rows: Rows) -> tuple[Tensor, list[Unread]]:
        """See `Loader.read`."""
        images = _empty(reader, rows)
        return images, reader.read(images, rows, Watch())

    def close(self) -> None:
        """Nothing to end."""


class Threads:
    """`workers` threads of this process."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None

    def start(self, *, policies: bool = False) -> None:
        """Threads start with the first rows."""

    def read(self, reader: Reader, rows: Rows) -> tuple[Tensor, list[Unread]]:
        """See `Loader.read`."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix="vitcore-decode")
            pool = self._pool
        images, draws, watch = _empty(reader, rows), reader.draws(rows), Watch()

        def row(at: int) -> Unread | None:
            if pool is not self._pool:
                raise closed()
            return reader.row(images[at], at, rows, draws, watch)

        try:
            futures = [pool.submit(row, at) for at in range(len(images))]
        except RuntimeError as error:  # of a pool that was shut down just now
            raise closed() from error
        found = [future.result() for future in futures]
        return images, [unread for unread in found if unread is not None]

    def close(self) -> None:
        """See `Loader.close`; each thread finishes the picture it is at."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True)


def make_loader(workers: int | Literal["auto"], kind: str) -> Loader:
    """The loader of `--workers` and `--loader`."""
    count = usable_cores() if workers == "auto" else workers
    if count == 0:
        return Inline()
    if kind == "auto":
        kind = "threads" if count <= MOST_THREADS else "processes"
    return Threads(count) if kind == "threads" else Processes(count)


def needs_workers(source: Source, view: View) -> bool:
    """Whether samples cost time before they are pictures of the model's size; the first one tells."""
    try:
        stored = source.read(0) if len(source) else b""
    except Exception:  # whoever wants the sample meets it again
        return True
    return not isinstance(stored, np.ndarray) or stored.shape[1:] != view.size


def _empty(reader: Reader, rows: Rows) -> Tensor:
    return torch.empty((len(rows.indices), reader.view.channels, *reader.view.size), dtype=torch.uint8)
