"""The tester's end of a worker: it starts one for a backend, asks it for checks, and survives its death."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

from vitcore.errors import VitcoreError

REFUSED = 4
"""Exit status of a rank whose device is not there."""
LONGEST = 900.0
"""Seconds that one check may take."""


@dataclass(frozen=True)
class Answer:
    """What a check came to: `outcome` is "passed", "failed" or "not applicable"."""

    check: str
    outcome: str
    said: str
    seconds: float


def command(*argv: str, simulate: bool, enabled: Sequence[str] = ()) -> list[str]:
    """The command of a worker process."""
    flags = [*(["--simulate"] if simulate else []), *(f"--enable={name}" for name in enabled)]
    return [sys.executable, "-m", "vitcore.testing.worker", *argv, *flags]


class Worker:
    """A process of one backend. A process that dies in a check is that check's failure; the next starts another."""

    def __init__(self, backend: str, seed: int = 0, *, simulate: bool = False, enabled: Sequence[str] = ()) -> None:
        self.backend, self._command = backend, command(backend, str(seed), simulate=simulate, enabled=enabled)
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def ask(self, check: str) -> Answer:
        """The answer to one check; VitcoreError where the backend cannot be opened."""
        process = self._started()
        assert process.stdin is not None
        try:
            process.stdin.write(check + "\n")
            process.stdin.flush()
            said = self._line()
        except BrokenPipeError:
            said = None
        if said is None:
            code = process.poll()
            tail = self._tail()
            self.close()
            died = f"the process died (exit status {code})" if code is not None else f"no answer within {LONGEST:.0f} s"
            return Answer(check, "failed", f"{died}{': ' + tail if tail else ''}", 0.0)
        return Answer(**said)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def _started(self) -> subprocess.Popen[str]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in close)
        self._process = subprocess.Popen(
            self._command, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env={**os.environ},
        )  # fmt: skip
        ready = self._line()
        if ready is None or not ready["ready"]:
            said = ready["said"] if ready else f"the process that opens it died: {self._tail()}"
            self.close()
            raise VitcoreError(said)
        return self._process

    def _line(self) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            if not waiting.select(LONGEST):
                return None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else ""
