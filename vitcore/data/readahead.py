"""Preparing the next value in one background thread while the caller uses this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from vitcore.errors import VitcoreError

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """`get(cursor)` is `load(cursor)`, with `load(following(cursor))` begun in the background.

    `load` must be a pure function of the cursor and safe to call from two threads. A guess that was wrong is dropped,
    with any exception it met; a right one raises its exception in `get`. `following` gives None where nothing follows.
    """

    def __init__(self, load: Callable[[int], T], following: Callable[[int], int | None], name: str) -> None:
        self._load = load
        self._following = following
        self._name = name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"vitcore-{name}")
        self._pending: tuple[int, Future[T]] | None = None
        self._closed = False

    def get(self, cursor: int) -> T:
        """The value at `cursor`; VitcoreError after `close`."""
        if self._closed:
            raise VitcoreError(f"the {self._name} feed is closed; make another to go on")
        pending, self._pending = self._pending, None
        if pending is not None and pending[0] == cursor:
            value = pending[1].result()
        else:
            if pending is not None:
                pending[1].cancel()
            value = self._load(cursor)
        following = self._following(cursor)
        if following is not None:
            self._pending = (following, self._thread.submit(self._load, following))
        return value

    def close(self) -> None:
        """Stop the thread, after the value it is at; may be called again."""
        self._closed = True
        self._pending = None
        self._thread.shutdown(wait=True, cancel_futures=True)
