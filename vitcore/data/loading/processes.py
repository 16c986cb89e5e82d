"""Worker processes that decode into memory shared with this one; a worker that dies is replaced, and nothing hangs."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import Tensor

from vitcore.data.loading.foreman import Foreman
from vitcore.data.loading.reading import Reader, Rows, Unread


class Processes:
    """`workers` processes, started with the first rows; after `close` they may be started again."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._policies = False
        self._lock = threading.Lock()
        self._foreman: Foreman | None = None
        self._forgotten: weakref.finalize[..., Any] | None = None

    def start(self, *, policies: bool = False) -> None:
        """Begin to start the workers, which takes seconds, and return."""
        self._policies = policies
        self._running()

    def read(self, reader: Reader, rows: Rows) -> tuple[Tensor, list[Unread]]:
        """See `vitcore.data.loading.loader.Loader.read`."""
        return self._running().read(reader, rows)

    def close(self) -> None:
        """End the workers, in the midst of an image if need be; who waits for rows gets a VitcoreError."""
        with self._lock:
            foreman, self._foreman = self._foreman, None
        if foreman is not None and self._forgotten is not None:
            self._forgotten.detach()
            foreman.stop()
            foreman.thread.join()

    def _running(self) -> Foreman:
        with self._lock:
            if self._foreman is None or self._foreman.ended:
                if self._forgotten is not None:
                    self._forgotten.detach()
                self._foreman = Foreman(self.workers, policies=self._policies)
                # A data set that is forgotten without `close` leaves no processes.
                self._forgotten = weakref.finalize(self, self._foreman.stop)
            return self._foreman
