"""What a process and its workers talk through. No torch here: the far end has not imported it when it begins to listen."""

from __future__ import annotations

import os
import socket
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar


class HasFileno(Protocol):
    """What can be waited for."""

    def fileno(self) -> int: ...


Waited = TypeVar("Waited", bound=HasFileno)


def wait_for(things: list[Waited], seconds: float | None = None) -> list[Waited]:
    """Those that have something to receive, or whose other end is gone; none where `seconds` pass before."""
    return wait(things, seconds)  # type: ignore[arg-type, return-value]


class Wire:
    """One end of a socket between two processes, for values and for descriptors; of one thread each."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._connection = Connection(os.dup(end.fileno()))

    @staticmethod
    def pair() -> tuple[Wire, socket.socket]:
        """This process's end, and the one to pass on."""
        here, there = socket.socketpair()
        return Wire(here), there

    def fileno(self) -> int:
        """For `wait_for`."""
        return self._socket.fileno()

    def send(self, *values: Any, fd: int | None = None) -> None:
        """Send values, and a descriptor behind them; OSError when the other end is gone."""
        self._connection.send(values)
        if fd is not None:
            socket.send_fds(self._socket, [b"+"], [fd])

    def receive(self) -> tuple[Any, ...]:
        """The next values; EOFError or another OSError when the other end is gone."""
        values: tuple[Any, ...] = self._connection.recv()
        return values

    def receive_fd(self) -> int:
        """The descriptor behind the values that were just received; the caller closes it."""
        _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not fds:
            raise EOFError
        return fds[0]

    def close(self) -> None:
        """Close this end; may be called again."""
        self._connection.close()
        self._socket.close()


class Bell:
    """Wakes a thread that waits for wires too; rung by any thread."""

    def __init__(self) -> None:
        self._hear, self._ring = os.pipe()
        self._lock = threading.RLock()  # a data set that is collected in the midst of this rings too
        self._open = True

    def fileno(self) -> int:
        """For `wait_for`."""
        return self._hear

    def ring(self) -> None:
        """Wake the thread."""
        with self._lock:
            if self._open:
                os.write(self._ring, b"!")

    def hush(self) -> None:
        """Forget that it was rung; to be called when it was."""
        os.read(self._hear, 4096)

    def close(self) -> None:
        """Close both ends."""
        with self._lock:
            self._open = False
            os.close(self._hear)
            os.close(self._ring)
