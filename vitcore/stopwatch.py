"""The time that training takes, and how much of it was waiting for input: without warm-up in rates, without evaluation
and checkpoints in anything."""

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
        self._timed_steps, self._timed_seconds, self._timed_wait = 0, 0.0, 0.0
        self._recent_seconds, self._recent_wait = 0.0, 0.0
        self._waited = 0.0

    def start(self) -> None:
        """Training goes on after something that is not counted."""
        self._mark = time.perf_counter()

    def skip(self, step: int, waited: float) -> None:
        """Steps up to `step` were done since the last lap that are in no rate, as those under a profiler."""
        self._step, self._mark, self._waited = step, time.perf_counter(), waited

    def lap(self, step: int, waited: float) -> None:
        """Count the time since the last start or lap. waited: seconds, in all, that the loop has waited for batches."""
        now = time.perf_counter()
        passed = now - self._mark
        self.seconds += passed
        wait, self._waited = waited - self._waited, waited
        self._recent_seconds += passed
        self._recent_wait += wait
        if self._step >= self.warm_at:
            self._timed_steps += step - self._step
            self._timed_seconds += passed
            self._timed_wait += wait
        self._step, self._mark = step, now

    @property
    def steps_per_second(self) -> float:
        """The rate after warm-up; 0 before there is one."""
        return self._timed_steps / self._timed_seconds if self._timed_seconds else 0.0

    @property
    def input_wait(self) -> float:
        """The share of the time after warm-up, 0 to 1, in which the loop waited for batches; NaN before there is one.

        It is measured on the host, where a batch is asked for, so it means the same on every device. A device that works
        while the host goes on may still have had work then: it was idle for input for at most this share. Near 0 the
        device is the bottleneck; anything lasting above that is time which more workers, or less work on each image, win.
        """
        return self._timed_wait / self._timed_seconds if self._timed_seconds else float("nan")

    def recent_input_wait(self) -> float:
        """The same share since it was last asked for, warm-up included."""
        share = self._recent_wait / self._recent_seconds if self._recent_seconds else float("nan")
        self._recent_seconds, self._recent_wait = 0.0, 0.0
        return share
