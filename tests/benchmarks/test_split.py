"""Whose time is whose: kernels and marks under a clock that a test moves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from torch.profiler import record_function

from benchmarks.split import Clock, split_step
from benchmarks.workload import Workload
from vitcore.plan import make_plan
from vitcore.profiling.names import BACKWARD, FORWARD, INPUT, OTHER, PHASES, UPDATE


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, which only the test moves on."""
    held = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: held[0])
    return held


def taking(now: list[float], seconds: float, inside: Callable[[], Any] = lambda: None) -> Callable[[], None]:
    """A kernel that takes so long, half of it before and half after what is inside."""

    def kernel() -> None:
        now[0] += seconds / 2
        inside()
        now[0] += seconds / 2

    return kernel


def test_each_phase_has_its_own_time(now: list[float]) -> None:
    clock = Clock()
    data, put, forward, backward, update = (
        clock.wrap(f"{op}__x", taking(now, seconds))
        for op, seconds in (
            ("data_next", 1),
            ("data_put", 2),
            ("model_forward", 4),
            ("model_backward", 8),
            ("opt_update", 16),
        )
    )
    clock.start()
    data(), put(), forward()
    now[0] += 32  # of no kernel
    backward(), update()
    assert clock.stop() == {**dict.fromkeys(PHASES, 0.0), INPUT: 3, FORWARD: 4, BACKWARD: 8, UPDATE: 16, OTHER: 32}
    # The next step begins at nothing, and outside of a step nothing is counted.
    data()
    clock.start()
    update()
    assert clock.stop()[INPUT] == 0 and sum(clock.stop().values()) == 16


def test_a_kernel_that_does_both_is_split_by_its_marks(now: list[float]) -> None:
    def both() -> None:
        with record_function("model.forward"):
            taking(now, 2)()
        now[0] += 1
        with record_function("model.backward"), record_function("something else"):
            taking(now, 5)()

    clock = Clock()
    grad = clock.wrap("model_grad__x", both)
    with clock.marks():
        clock.start()
        grad()
        found = clock.stop()
    # What stands around its forward and backward is the sum of the gradients, as the profile has it.
    assert (found[FORWARD], found[BACKWARD]) == (2, 6)
    clock.start()
    grad()
    assert clock.stop()[FORWARD] == 0  # the marks are let go of


def test_the_device_is_waited_for_before_the_time_is_taken(now: list[float]) -> None:
    """A kernel that only starts its work has the time of that work."""
    clock, queued = Clock(), []

    def wait() -> None:
        now[0] += sum(queued)
        queued.clear()

    clock.wait = wait
    forward, update = (
        clock.wrap("model_forward__x", lambda: queued.append(3)),
        clock.wrap("opt_update__x", lambda: queued.append(7)),
    )
    clock.start()
    forward(), update()
    found = clock.stop()
    assert (found[FORWARD], found[UPDATE], found[OTHER]) == (3, 7, 0)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_real_step_has_a_forward_and_a_backward(accumulation: int) -> None:
    job = Workload("ViT-digits", 8, 4, "fp32", classes=10, accumulation=accumulation)
    found = split_step(job, make_plan(job.config("cpu")), steps=2)
    assert all(found[phase] > 0 for phase in (INPUT, FORWARD, BACKWARD, UPDATE))
