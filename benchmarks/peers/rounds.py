"""All loops in turn, a step each in a round, in orders that are balanced over the rounds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import memory
from benchmarks.orders import balanced
from benchmarks.peers.loops import Loop
from benchmarks.rate import Product
from vitcore.errors import VitcoreError

GEMM = "matrix product"


@dataclass
class Measured:
    """A loop's times in seconds a step, round by round, and its bytes."""

    name: str
    times: list[float] = field(default_factory=list)
    first_step: float = 0.0
    """Seconds of the first step, with what is compiled in it."""
    first_loss: float = float("nan")
    last_loss: float = float("nan")
    """Of the first step, and of one after the rounds: equal work gives nearly equal ones."""
    held: int = 0
    added: int = 0

    @property
    def peak(self) -> int:
        """Bytes at the highest point of a step, of this loop alone."""
        return self.held + self.added


def build_all(
    builds: dict[str, Callable[[], Loop]], device: torch.device, wait: Callable[[], Any], warmup: int
) -> tuple[list[Loop], dict[str, Measured]]:
    """Build the loops one after the other and take their first steps; what each holds then is counted."""
    loops, found = [], {}
    for name, build in builds.items():
        before = memory.held(device)
        found[name] = Measured(name)
        loop, found[name].first_step = _begun(name, build, wait)
        found[name].first_loss = loop.loss()
        for _ in range(warmup - 1):
            loop.step()
        wait()
        found[name].held = memory.held(device) - before
        found[name].added = memory.added(device, loop.within, wait)
        loops.append(loop)
        print(f"  {name}: first step after {found[name].first_step:.2f} s", file=sys.stderr)
    return loops, found


def _begun(name: str, build: Callable[[], Loop], wait: Callable[[], Any]) -> tuple[Loop, float]:
    """A loop after its first step, and the seconds of that. What a library raises becomes one sentence."""
    try:
        loop = build()
        loop.name = name
        start = time.perf_counter()
        loop.step()
        wait()
        return loop, time.perf_counter() - start
    except VitcoreError:
        raise
    except Exception as e:
        raise VitcoreError(f"{name} cannot train here: {type(e).__name__}: {e}; leave it out by --peers, or see where by "
                           "VITCORE_DEBUG=1") from e  # fmt: skip


def run_rounds(
    loops: Sequence[Loop], found: dict[str, Measured], product: Product, wait: Callable[[], Any], *, rounds: int, inner: int,
    seconds: float,
) -> int:  # fmt: skip
    """Fill in the times, those of the matrix product too; returns the rounds that there was time for, whole ones."""
    found[GEMM] = Measured(GEMM)
    steps: list[tuple[str, Callable[[], Any]]] = [*((loop.name, loop.step) for loop in loops), (GEMM, product.step)]
    began = time.perf_counter()
    orders = balanced(len(steps))
    for done in range(rounds):
        for name, step in (steps[i] for i in orders[done % len(orders)]):
            start = time.perf_counter()
            for _ in range(inner):
                step()
            wait()
            found[name].times.append((time.perf_counter() - start) / inner)
        spent = time.perf_counter() - began
        if spent + spent / (done + 1) > seconds:
            return done + 1
    return rounds


def last_losses(loops: Sequence[Loop], found: dict[str, Measured]) -> None:
    """The loss of one more step of each."""
    for loop in loops:
        loop.loss()
        loop.step()
        found[loop.name].last_loss = loop.loss()
