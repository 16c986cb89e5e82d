"""What a lowered module becomes: five callables over one state."""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vitcore.backend import Backend, Kernel, World
from vitcore.data.feed import Feed
from vitcore.debug import debug_level
from vitcore.errors import VitcoreError
from vitcore.model.vit import VisionTransformer
from vitcore.runtime.codegen import compile_program, source
from vitcore.runtime.hyper import Hyper
from vitcore.runtime.reference.data import Key
from vitcore.runtime.runtime import Runtime
from vitcore.runtime.trace import tracer
from vitcore.step.ir import Module

State = tuple[Any, ...]


@dataclass(frozen=True)
class Stats:
    """Counts since the executable was opened; what a device does not count is 0."""

    steps: int
    marks: int
    flushes: int
    host_reads: int
    reductions: int
    bytes_reduced: int
    compiles: int = 0
    cache_hits: int = 0
    fallbacks: int = 0


class Executable:
    """A sealed module on an opened backend, with its model and its data.

    The state is a tuple of the values of `module.state`, in order. State that is handed in is consumed: what comes out
    may be the same memory, so only the newest state is good.
    """

    def __init__(
        self,
        module: Module,
        backend: Backend,
        kernels: Sequence[Kernel],
        model: VisionTransformer,
        feed: Feed | None,
        world: World | None = None,
        *,
        guard: bool | None = None,
        wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        for program in module.programs:
            if not program.sealed:
                raise VitcoreError(f"@{program.name} is not sealed; lower the module before it is run")
        self.module = module
        level = debug_level()
        self.rt = Runtime(
            backend, module, kernels, model, feed, world or World(),
            guard=level >= 1 if guard is None else guard, wrap=wrap or tracer(level, self._wait),
        )  # fmt: skip
        if level >= 3:
            print(self.source, file=sys.stderr)
        self._init, self._train, self._eval, self._log, self._restore = (
            compile_program(module[name], self.rt) for name in ("init", "train", "eval", "log", "restore")
        )
        kinds = [v.ty.kind for v in module.state]
        self._params, self._metrics = kinds.index("params"), kinds.index("metrics")
        # Evaluation borrows the parameters, or their average, under the name that they have in the step.
        self._evaluated = [v.name for v in module.state].index(module["eval"].params[0].name)

    @property
    def params_name(self) -> str:
        """The name of the parameters among the state's values."""
        return self.module.state[self._params].name

    def _wait(self) -> None:
        self.rt.wait()

    @property
    def source(self) -> str:
        """The Python that runs, program after program."""
        return "\n\n".join(source(p) for p in self.module.programs)

    @property
    def fingerprint(self) -> str:
        """A digest of the text, the versions of torch and Python, and the device: the key of caches, and `made by`."""
        facts = (str(self.module), torch.__version__, platform.python_version(), str(self.rt.device))
        return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]

    def init(self, seed: int) -> State:
        """Fresh state: parameters, optimizer slots, accumulators and buffers, all made now."""
        return self._init(0, Key(seed))

    def step(self, state: State, hyper: Mapping[str, float]) -> State:
        """One training step; returns before the device is done. `hyper` holds every name of the module's `hyper`."""
        self.rt.counts.steps += 1
        self.rt.arithmetic()
        return self._train(*state, Hyper(hyper, self.rt.device, pinned=self.rt.backend.pinned))

    def eval(self, state: State, steps: int) -> State:
        """Run the evaluation split's `steps` batches, counting into the state's metrics; parameters are borrowed."""
        self.rt.arithmetic()
        cursor, metrics = 0, state[self._metrics]
        for _ in range(steps):
            cursor, metrics = self._eval(state[self._evaluated], cursor, metrics)
        return self._with_metrics(state, metrics)

    def log(self, state: State) -> tuple[State, dict[str, float]]:
        """Reduce and read the metrics, the only host read, and start fresh ones; all ranks call it at the same step."""
        metrics, report = self._log(state[self._metrics])
        return self._with_metrics(state, metrics), report

    def restore(self, saved: Mapping[str, Any]) -> State:
        """State from saved values, by name; parameters are copied into the model's own tensors, what is derived is
        rebuilt."""
        values = {**saved, self.params_name: self.rt.take_params(saved[self.params_name])}
        values |= {v.name: self.rt.joined(values[v.name]) for v in self.module.saved if v.ty.kind in ("opt", "ema")}
        if self.rt.backend.lazy:
            # Else the copies are a part of the first step's graph, which is then compiled once with and once without them.
            self.rt.mark()
        return self._restore(*(values[v.name] for v in self.module.saved))

    def saved(self, state: State) -> dict[str, Any]:
        """The values of a checkpoint, by name: the state without what is derived."""
        return {v.name: s for v, s in zip(self.module.state, state, strict=True) if not v.ty.derived}

    def stats(self) -> Stats:
        """Counts since opening; `flushes` is what the device counts, or the marks where it does not."""
        c, device = self.rt.counts, self.rt.device_counters()
        own = {k: device.get(k, 0) for k in ("compiles", "cache_hits", "fallbacks")}
        return Stats(
            c.steps, c.marks, device.get("flushes", c.marks), c.host_reads, c.reductions, c.bytes_reduced, **own
        )

    def close(self) -> None:
        """Wait for the device and stop reading data; closing twice is no error."""
        self.rt.wait()
        if self.rt.feed is not None:
            self.rt.feed.close()

    def _with_metrics(self, state: State, metrics: Any) -> State:
        i = self._metrics
        return (*state[:i], metrics, *state[i + 1 :])
