"""The time that training takes: without warm-up in rates, without evaluation and checkpoints in anything."""

from __future__ import annotations

import time

# Steps at the start of a process whose time is in no rate: caches fill, code is compiled.
WARMUP_STEPS = 3


class Stopwatch:
    """Runs from `start` to `lap`; `lap(step)` says that the device has done all steps up to `step`."""

    def __init__(self, first_step: int, seconds: float = 0.0) -> None:
        self.seconds = seconds
        """Training time in all, over every process of the run."""
        self.warm_at = first_step + WARMUP_STEPS
        self._step, self._mark = first_step, time.perf_counter()
        self._timed_steps, self._timed_seconds = 0, 0.0

    def start(self) -> None:
        """Training goes on after something that is not counted."""
        self._mark = time.perf_counter()

    def lap(self, step: int) -> None:
        """Count the time since the last start or lap."""
        now = time.perf_counter()
        passed = now - self._mark
        self.seconds += passed
        if self._step >= self.warm_at:
            self._timed_steps += step - self._step
            self._timed_seconds += passed
        self._step, self._mark = step, now

    @property
    def steps_per_second(self) -> float:
        """The rate after warm-up; 0 before there is one."""
        return self._timed_steps / self._timed_seconds if self._timed_seconds else 0.0
