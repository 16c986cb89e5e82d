"""A step of vitcore as a user gets it, from a configuration through a plan to an executable, with batches from memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from benchmarks.workload import RATE, Workload, batches, weights
from vitcore.data.batch import Batch
from vitcore.model.vit import VisionTransformer
from vitcore.plan import Plan
from vitcore.runtime.executable import Executable
from vitcore.runtime.opening import open_backend


class InMemory:
    """A feed of batches that are there already, taken in turn."""

    def __init__(self, held: Sequence[Batch], accumulation: int = 1) -> None:
        self.held, self.waited = held, 0.0
        self.micro_batch = self.eval_batch = len(held[0].labels)
        self.global_batch = self.micro_batch * accumulation

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        """The batch whose turn it is, and the cursor after it."""
        return self.held[cursor // self.micro_batch % len(self.held)], cursor + self.micro_batch

    def after_train(self, cursor: int) -> int:
        """The cursor after the batch at `cursor`."""
        return cursor + self.micro_batch

    def close(self) -> None:
        """Nothing is held open."""


def open_once(plan: Plan) -> None:
    """Open the plan's backend, where this process has not done so: some devices refuse to be opened again."""
    if plan.backend.name not in _opened:
        open_backend(plan.backend, plan.plugins)
        _opened.add(plan.backend.name)


_opened: set[str] = set()


class OurLoop:
    """An opened plan and its state; `step` is one optimizer step, and returns before the device is done.

    `wrap` and `kernels` go to the executable: for watching, and for planting what a test wants to be found.
    """

    def __init__(
        self, job: Workload, plan: Plan, *, name: str = "vitcore", model: VisionTransformer | None = None,
        held: Sequence[Batch] | None = None, wrap: Callable[..., Any] | None = None,
    ) -> None:  # fmt: skip
        open_once(plan)
        self.job, self.plan, self.name = job, plan, name
        device = torch.device(plan.backend.device)
        first = weights(job) if model is None else model
        empty = VisionTransformer(job.variant, job.img_size, job.classes)
        held = batches(job, device, pinned=plan.backend.pinned) if held is None else held
        feed: Any = InMemory(held, job.accumulation)
        self.exe = Executable(plan.lowered, plan.backend, plan.kernels, empty, feed, plan.world, guard=False, wrap=wrap)
        self.hyper = {**plan.config.hypers(0), "lr": RATE}
        self._state = self._started(first)

    def _started(self, first: VisionTransformer) -> Any:
        """State with the job's parameters, as after loading weights."""
        exe = self.exe
        values = exe.saved(exe.init(self.plan.config.seed))
        named = {n: p.detach() for n, p in first.named_parameters()}
        values[exe.params_name] = tuple(named[n].to(exe.rt.device, copy=True) for n in exe.rt.names)
        return exe.restore(values)

    def step(self) -> None:
        """One optimizer step."""
        self._state = self.exe.step(self._state, self.hyper)

    def within(self, context: AbstractContextManager[Any]) -> None:
        """One step inside a context."""
        with context:
            self.step()

    def loss(self) -> float:
        """The mean loss of the steps since it was last asked for; it waits for the device."""
        self._state, report = self.exe.log(self._state)
        return report["loss"] / report["loss_n"] if report["loss_n"] else math.nan

    @property
    def state(self) -> Any:
        """The newest state."""
        return self._state

    def close(self) -> None:
        """Give it all back."""
        self.exe.close()
        self._state = None
