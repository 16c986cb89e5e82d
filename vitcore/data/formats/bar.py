"""How far a long piece of work on files is, on standard error: a bar on a terminal, a line each tenth in a log."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class Bar:
    """Progress towards `total` units (bytes where `of_bytes`). Use as a context."""

    def __init__(self, what: str, total: int, *, of_bytes: bool = False) -> None:
        self._what, self._total, self._of_bytes = what, max(total, 1), of_bytes
        self._done = self._tenths = 0
        self._bar: Any = None

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            count = DownloadColumn() if self._of_bytes else MofNCompleteColumn()
            columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._what, total=self._total)
            self._bar.start()
        return self

    def advance(self, units: int) -> None:
        """So many more are done."""
        self._done += units
        if self._bar is not None:
            self._bar.advance(self._task, units)
        elif self._tenths < (tenths := 10 * self._done // self._total):
            self._tenths = tenths
            print(f"vitcore: {self._what}: {10 * tenths} %", file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
