"""The keeper (`vitcore.data.loading.keeper`) as the trainer sees it: a process started afresh, which forks workers."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from vitcore.data.loading.wire import Bell, HasFileno, Wire, wait_for
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

# Keepers that may die over one order.
ATTEMPTS = 3
# Seconds for the keeper to end its workers.
PATIENCE = 5.0
# Workers have one thread each, and never load a device's libraries.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # fmt: skip


class Hiring:
    """A keeper, replaced if it dies; the workers that it had go on. Started at construction, and used from one thread.

    bell, heed: while the keeper is waited for, `heed` is called when the bell rings, and may raise.
    policies: whether workers will change pictures by policies.
    """

    def __init__(self, bell: Bell, heed: Callable[[], None], *, policies: bool = False) -> None:
        self._bell, self._heed, self._policies = bell, heed, policies
        self._ready = False
        self._keeper, self._wire = _start_keeper(policies)

    def fork(self, fd: int) -> int:
        """A new worker at the other end of the wire `fd`: its process number."""
        pid: int = self._ask("fork", fd=fd)
        return pid

    def ended(self, pid: int) -> str:
        """How a worker ended whose wire is closed, in words."""
        return in_words(self._ask("ended", pid))

    def close(self) -> None:
        """End the keeper, and with it all workers."""
        self._wire.close()
        if not self._ready:  # it has no workers yet, and would hear only after its imports
            self._keeper.kill()
        try:
            self._keeper.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()

    def _ask(self, *order: Any, fd: int | None = None) -> Any:
        for _ in range(ATTEMPTS):
            if not self._ready:
                self._await_ready()
            try:
                self._wire.send(*order, fd=fd)
                return self._answer()[0]
            except (EOFError, OSError):
                log.warning("the process that worker processes are forked from died; another takes its place")
                self._ready = False
                self.close()
                self._keeper, self._wire = _start_keeper(self._policies)
        raise VitcoreError(
            "the process that worker processes are forked from dies again and again; give more memory, or set --loader threads"
        )

    def _await_ready(self) -> None:
        try:
            what, *rest = self._answer()
        except (EOFError, OSError):
            what, rest = "error", [f"it ended {in_words(self._keeper.wait())}"]
        if what == "error":
            raise VitcoreError(
                f"worker processes cannot start ({rest[0]}); install what is missing, or set --loader threads"
            )
        self._ready = True

    def _answer(self) -> tuple[Any, ...]:
        ends: list[HasFileno] = [self._bell, self._wire]
        while True:
            ready = wait_for(ends)
            if self._bell in ready:
                self._heed()
            if self._wire in ready:
                return self._wire.receive()


def _start_keeper(policies: bool) -> tuple[subprocess.Popen[bytes], Wire]:
    """A fresh Python that imports from where this one does, and the wire to it.

    Not through multiprocessing, whose workers run the user's main script again to import it. In a session of its own, so
    that what a terminal sends reaches this process alone.
    """
    wire, there = Wire.pair()
    with there:
        fd = there.fileno()
        code = f"import sys; sys.path[:] = {sys.path!r}; from vitcore.data.loading.keeper import keep; keep({fd}, {policies})"
        keeper = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(fd,), stdin=subprocess.DEVNULL, start_new_session=True,
            env={**os.environ, **_ENVIRONMENT},
        )  # fmt: skip
    return keeper, wire


def in_words(code: int | None) -> str:
    """An exit code in words."""
    if code is None:
        return "of an unknown cause"
    if code >= 0:
        return f"with exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else "unknown"
    hint = ", as when memory runs out" if name == "SIGKILL" else ""
    return f"of signal {-code} ({name}{hint})"
