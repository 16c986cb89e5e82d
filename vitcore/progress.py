"""What a person sees while a run goes on: a bar on a terminal, plain lines in a log. All on standard error."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


class Progress:
    """A bar with loss, rate, images a second and time left where standard error is a terminal; else one line a log."""

    def __init__(self, total: int, start: int, *, show: bool = True) -> None:
        self.show, self.total = show, total
        self._bar: Any = None
        if show and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[facts]}"))
            self._bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))
            self._task = self._bar.add_task("train", total=total, completed=start, facts="")
            self._bar.start()

    def step(self, step: int) -> None:
        """`step` optimizer steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, values: Mapping[str, float], seconds_left: float) -> None:
        """The values of a log step."""
        facts = "  ".join(_fact(n, v) for n, v in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts)
        elif self.show:
            self.say(f"step {step}/{self.total}  {facts}  left {_clock(seconds_left)}")

    def say(self, line: str) -> None:
        """A line of its own."""
        if not self.show:
            return
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _fact(name: str, value: float) -> str:
    if name == "input_wait":
        return f"input wait {100 * value:.0f} %"
    return f"{name} {_short(name, value)}"


def _short(name: str, value: float) -> str:
    return f"{value:.2e}" if name == "lr" else f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def _clock(seconds: float) -> str:
    if seconds != seconds:  # no rate is known before the warm-up steps are done
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
