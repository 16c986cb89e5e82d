"""Preparing the next values in background threads while the caller uses this one."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from vitcore.errors import VitcoreError

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`get(cursor)` is `load(cursor)`, with the `depth` values that follow begun in the background, each in a thread.

    `load` must be a pure function of the cursor and safe to call from several threads. A guess that was wrong is dropped,
    with any exception it met; a right one raises its exception in `get`. `following` gives None where nothing follows.
    """

    def __init__(
        self, load: Callable[[int], T], following: Callable[[int], int | None], name: str, depth: int = 1
    ) -> None:
        self._load = load
        self._following = following
        self._name = name
        self._depth = depth
        self._threads = ThreadPoolExecutor(depth, thread_name_prefix=f"vitcore-{name}")
        self._pending: deque[tuple[int, Future[T]]] = deque()
        self._closed = False

    def get(self, cursor: int) -> T:
        """The value at `cursor`; VitcoreError after `close`."""
        if self._closed:
            raise VitcoreError(f"the {self._name} feed is closed; make another to go on")
        if self._pending and self._pending[0][0] == cursor:
            _, future = self._pending.popleft()
            self._begin(cursor)
            return future.result()
        self._drop()
        value = self._load(cursor)
        self._begin(cursor)
        return value

    def stop(self) -> None:
        """Begin nothing more, and do not wait; may be called again."""
        self._closed = True
        self._drop()

    def close(self) -> None:
        """Stop the threads, after the values they are at; may be called again."""
        self.stop()
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _begin(self, cursor: int) -> None:
        """Begin what is missing of the values that follow `cursor`."""
        last = self._pending[-1][0] if self._pending else cursor
        while len(self._pending) < self._depth:
            following = self._following(last)
            if following is None:
                return
            last = following
            self._pending.append((last, self._threads.submit(self._load, last)))

    def _drop(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
