"""Where a step's time goes: kernels' calls timed one by one, the device waited for after each, in steps of their own.

A kernel that does forward and backward in one is split by the marks that it makes for torch's profiler, `model.forward` and
`model.backward`, which vitcore.runtime.fused_leaf promises. Waiting costs overlap, so the parts may add up to more than a step of
the timed rounds. Of a step that the device replays as one graph only `rest` is known.
"""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from torch.autograd.profiler import record_function

from benchmarks.ours import OurLoop
from benchmarks.workload import Workload
from vitcore.plan import Plan
from vitcore.profiling.names import OTHER, PHASES, op_of, phase_of

_MARKS = ("model.forward", "model.backward")


class Clock:
    """Seconds by phase in the step at hand. The innermost of what is timed has the time: a mark before its kernel."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.wait: Callable[[], Any] = lambda: None
        self._stack: list[str] = []
        self._since = 0.0

    def start(self) -> None:
        """A step begins."""
        self.spent.clear()
        self._stack, self._since = [OTHER], time.perf_counter()

    def _lap(self) -> None:
        if not self._stack:
            return  # outside of a step
        self.wait()
        now = time.perf_counter()
        self.spent[self._stack[-1]] += now - self._since
        self._since = now

    def stop(self) -> dict[str, float]:
        """The step's seconds by phase."""
        self._lap()
        self._stack.clear()
        return {phase: self.spent[phase] for phase in PHASES}

    def enter(self, phase: str) -> None:
        """From now on time is this phase's."""
        self._lap()
        self._stack.append(phase)

    def leave(self) -> None:
        """From now on it is that of the phase before."""
        self._lap()
        self._stack.pop()

    def wrap(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """A kernel under the clock, as `Executable(wrap=...)` takes it."""
        phase = phase_of(op_of(name))

        @functools.wraps(kernel)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self._stack:
                return kernel(*args, **kwargs)
            self.enter(phase)
            try:
                return kernel(*args, **kwargs)
            finally:
                self.leave()

        return timed

    @contextmanager
    def marks(self) -> Iterator[None]:
        """Let the profiler's marks of forward and backward be phases too."""
        enter, leave = record_function.__enter__, record_function.__exit__

        def entered(mark: Any) -> Any:
            if mark.name in _MARKS:
                self.enter(phase_of(mark.name))
            return enter(mark)

        def left(mark: Any, *exc: Any) -> None:
            leave(mark, *exc)
            if mark.name in _MARKS:
                self.leave()

        record_function.__enter__, record_function.__exit__ = entered, left  # type: ignore[method-assign]
        try:
            yield
        finally:
            record_function.__enter__, record_function.__exit__ = enter, leave  # type: ignore[method-assign]


def split_step(job: Workload, plan: Plan, steps: int = 5) -> dict[str, float]:
    """Median seconds of each phase over a few steps, of an executable of its own."""
    clock = Clock()
    loop = OurLoop(job, plan, wrap=clock.wrap)
    clock.wait = loop.exe.rt.wait
    try:
        loop.step()
        with clock.marks():
            found = []
            for _ in range(steps):
                clock.start()
                loop.step()
                found.append(clock.stop())
    finally:
        loop.close()
    return {phase: median(one[phase] for one in found) for phase in PHASES}
