"""The engine: ops are noted, and carried out on the processor when something flushes.

What is noted is replayed in the program's order on ordinary tensors, so views alias and writes in place mutate as they do
eagerly, and nothing is rewritten. A noted program is kept by its ops, their wiring, constants, and the shapes, strides and dtypes
of its inputs, and which results are still wanted; meeting a new one stands for a compilation.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vitcore.runtime.events import Event
from vitcore_hpusim.flushing import METADATA, culprit
from vitcore_hpusim.memory import Ledger
from vitcore_hpusim.meta import Meta, meta_of
from vitcore_hpusim.numbers import number_arguments

HOST = torch.device("cpu")


class Slot:
    """The value behind tensors: a tensor of the processor, or a result that is still to come (`node` is its number)."""

    __slots__ = ("__weakref__", "generation", "input", "meta", "node", "value")

    def __init__(self, meta: Meta, value: Tensor | None = None, node: int = -1, generation: int = -1) -> None:
        self.meta, self.value, self.node, self.generation = meta, value, node, generation
        self.input = -1


class OpInfo:
    """What is asked of an op's schema again and again."""

    __slots__ = ("in_place", "names", "numbers", "returns")

    def __init__(self, op: Any) -> None:
        schema = op._schema
        self.names = [a.name for a in schema.arguments]
        self.numbers = number_arguments(op)
        self.returns = bool(schema.returns)
        self.in_place = schema.is_mutable and all(r.alias_info is not None for r in schema.returns)


@dataclass
class Step:
    """One op of a program, by its key: what it is called with, what comes out."""

    number: int
    op: Any
    leaves: tuple[Any, ...]
    """("v", result), ("i", input) or ("c", constant)."""
    spec: tuple[Any, ...]
    outs: tuple[Meta | None, ...] | None
    single: bool


@dataclass
class Program:
    """A noted program, ready to be replayed."""

    code: list[tuple[Any, tuple[Any, ...], tuple[Any, ...], tuple[int, ...] | None, tuple[int, ...]]]
    results: int
    peak: int = 0


@dataclass
class Counts:
    """What the device counts."""

    flushes: int = 0
    empty: int = 0
    compiles: int = 0
    hits: int = 0
    ops: int = 0
    to_device: int = 0
    to_host: int = 0
    fallbacks: Counter[str] = field(default_factory=Counter)
    compile_seconds: float = 0.0


class Recorder:
    """The device. One a process."""

    KEPT_EVENTS = 100_000

    def __init__(self, *, lazy: bool, wrap: Callable[[Slot], Any]) -> None:
        self.lazy, self.wrap = lazy, wrap
        self.lock = threading.RLock()
        self.counts, self.events, self.ledger = Counts(), list[Event](), Ledger()
        self.unsupported: frozenset[str] = frozenset()
        self.tanh_gelu = False
        self.closures: list[Callable[[], object]] = []
        self.random_marks, self.draws = 0.0, random.Random(0)
        self._steps: dict[Any, Step] = {}
        self._programs: dict[Any, Program] = {}
        self._infos: dict[Any, OpInfo] = {}
        self._generation = 0
        self._begin()

    def _begin(self) -> None:
        self._code: list[tuple[Step, tuple[int, ...] | None]] = []
        self._inputs: list[Any] = []
        self._kinds: list[Any] = []
        self._wanted: list[weakref.ref[Slot]] = []
        self._results = 0
        self._storages: set[int] = set()
        self._generation += 1

    @property
    def pending(self) -> int:
        """Ops that are noted and not carried out."""
        return len(self._code)

    def info(self, op: Any) -> OpInfo:
        """The op's schema, read once."""
        found = self._infos.get(op)
        if found is None:
            found = self._infos[op] = OpInfo(op)
        return found

    # ---- noting ----

    def note(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note an op; its results are tensors whose values are to come."""
        if op in METADATA:
            raise NotImplementedError(f"{op} changes a tensor's own shape in place, which this simulated device cannot "
                                      "record; use the form that returns a new tensor")  # fmt: skip
        info = self.info(op)
        leaves, key, spec = self._leaves(op, info, args, kwargs)
        step = self._steps.get(key)
        if step is None:
            step = self._new_step(key, op, leaves, spec, info)
        self.counts.ops += 1
        if info.in_place:
            self._code.append((step, None))
            out = (kwargs.get("out", args[0] if args else None)) if info.returns else None
        else:
            out = self._outs(step)
        if self.random_marks and self.draws.random() < self.random_marks:
            self.flush("random mark")
        return out

    def _outs(self, step: Step) -> Any:
        assert step.outs is not None
        numbers, tensors = [], []
        for meta in step.outs:
            if meta is None:
                numbers.append(-1)
                tensors.append(None)
                continue
            slot = Slot(meta, None, self._results, self._generation)
            numbers.append(self._results)
            self._results += 1
            self._wanted.append(weakref.ref(slot))
            tensors.append(self.wrap(slot))
        self._code.append((step, tuple(numbers)))
        return tensors[0] if step.single else tuple(tensors)

    def _leaves(self, op: Any, info: OpInfo, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
        leaves: list[Any] = []
        key: list[Any] = [op]
        spec: list[Any] = []
        for name, value in (*zip(info.names, args), *kwargs.items()):
            positional = len(spec) < len(args)
            if isinstance(value, (list, tuple)):
                spec.append(len(value) if positional else (name, len(value)))
                for each in value:
                    self._leaf(each, False, leaves, key)
            else:
                spec.append(-1 if positional else (name, -1))
                self._leaf(value, name in info.numbers, leaves, key)
        shape = tuple(spec)
        key.append(shape)
        return leaves, tuple(key), shape

    def _leaf(self, value: Any, number: bool, leaves: list[Any], key: list[Any]) -> None:
        slot = getattr(value, "_slot", None)
        if slot is not None:
            if slot.value is None:
                leaves.append(("v", slot.node))
                key += (slot.node, slot.meta)
            else:
                if slot.generation != self._generation:
                    slot.generation, slot.input = self._generation, self._input(slot, slot.meta)
                    self._storages.add(slot.value.untyped_storage()._cdata)
                leaves.append(("i", slot.input))
                key += (-1 - slot.input, slot.meta)
        elif isinstance(value, Tensor):
            if value.dim():
                raise RuntimeError(f"Expected all tensors to be on the same device, but found hpu:0 and {value.device}")
            copied = value.detach().clone()
            self._put(copied, leaves, key)
        elif number and type(value) in (int, float) and value != 1:
            index = self._input(value, type(value))
            leaves.append(("i", index))
            key += (-1 - index, type(value))
        elif isinstance(value, torch.device):
            leaves.append(("c", HOST))
            key.append("device")
        elif isinstance(value, torch.Generator):
            leaves.append(("c", None))
            key.append("generator")
        else:
            leaves.append(("c", value))
            key += (type(value), value)  # 1, 1.0 and True must not be one key

    def _put(self, value: Tensor, leaves: list[Any], key: list[Any]) -> None:
        self.counts.to_device += 1
        meta = meta_of(value)
        index = self._input(Slot(meta, value), meta)
        leaves.append(("i", index))
        key += (-1 - index, meta)

    def _input(self, value: Any, kind: Any) -> int:
        self._inputs.append(value)
        self._kinds.append(kind)
        return len(self._inputs) - 1

    def _new_step(self, key: Any, op: Any, leaves: list[Any], spec: tuple[Any, ...], info: OpInfo) -> Step:
        outs, single = (None, False) if info.in_place else self._infer(op, key, leaves, spec)
        step = Step(len(self._steps), op, tuple(leaves), spec, outs, single)
        self._steps[key] = step
        return step

    def _infer(
        self, op: Any, key: Any, leaves: list[Any], spec: tuple[Any, ...]
    ) -> tuple[tuple[Meta | None, ...], bool]:
        """The kinds of the op's results, from torch's own rules; from one run on made-up values where torch has none."""

        def stand_in(device: str) -> list[Any]:
            found, at = [], 1
            for kind, value in leaves:
                if kind == "c":
                    found.append(torch.device(device) if value is HOST else value)
                    at += 1 if key[at] in ("device", "generator") else 2
                    continue
                what = key[at + 1]
                found.append(what.empty(device) if isinstance(what, Meta) else (1 if what is int else 0.5))
                at += 2
            return found

        with undisturbed():
            try:
                args, kwargs = rebuilt(stand_in("meta"), spec)
                out = op(*args, **kwargs)
            except (NotImplementedError, RuntimeError):
                args, kwargs = rebuilt(stand_in("cpu"), spec)
                out = op(*args, **kwargs)
        if isinstance(out, Tensor):
            return (meta_of(out),), True
        return tuple(meta_of(t) if isinstance(t, Tensor) else None for t in out), False

    # ---- carrying out ----

    def mark(self) -> None:
        """Carry out what is noted, then call the closures that wait for that."""
        with self.lock:
            self.flush("mark")
            waiting, self.closures = self.closures, []
        for closure in waiting:
            closure()

    def flush(self, cause: str) -> None:
        """Carry out what is noted. A flush with nothing noted launches nothing, and is counted apart."""
        with self.lock:
            if not self._code:
                self.counts.empty += 1
                self._say(cause, 0, False, 0)
                self._begin()
                return
            live = [slot for ref in self._wanted if (slot := ref()) is not None]
            key = (
                tuple(step.number for step, _ in self._code),
                tuple(self._kinds),
                tuple(slot.node for slot in live),
            )
            code, inputs, results = self._code, self._inputs, self._results
            self._begin()
            program = self._programs.get(key)
            new = program is None
            if program is None:
                begin = time.perf_counter()
                program = self._programs[key] = _program(code, results, {slot.node for slot in live})
                self.counts.compile_seconds += time.perf_counter() - begin
                self.counts.compiles += 1
            else:
                self.counts.hits += 1
            self.counts.flushes += 1
            values = self._run(program, [i.value if isinstance(i, Slot) else i for i in inputs], measure=new)
            for slot in live:
                slot.value, slot.node = values[slot.node], -1
                self.ledger.own(slot)
            self._say(cause, len(program.code), new, program.peak)

    def _run(self, program: Program, inputs: list[Any], *, measure: bool) -> list[Any]:
        values: list[Any] = [None] * program.results
        meter = self.ledger.meter(inputs) if measure else None
        with undisturbed():
            for op, leaves, spec, outs, done in program.code:
                flat = [inputs[x] if kind == "i" else values[x] if kind == "v" else x for kind, x in leaves]
                args, kwargs = rebuilt(flat, spec)
                out = op(*args, **kwargs)
                if outs is not None:
                    for number, value in zip(outs, out if isinstance(out, (tuple, list)) else (out,)):
                        if number >= 0:
                            values[number] = value
                            if meter:
                                meter.add(value)
                for number in done:
                    if meter:
                        meter.drop(values[number])
                    values[number] = None
        if meter:
            program.peak = meter.peak
            self.ledger.peak = max(self.ledger.peak, meter.peak)
        return values

    def _say(self, cause: str, ops: int, new: bool, peak: int) -> None:
        if len(self.events) < self.KEPT_EVENTS:
            self.events.append(Event(cause, culprit(), ops, new, peak))

    def read(self, slot: Slot, cause: str) -> Tensor:
        """The value, for the host: reading flushes everything, whether or not what is read waits (lazy_kernels.cpp:705, 5130)."""
        if self.lazy:
            self.flush(cause)
        assert slot.value is not None
        return slot.value

    def is_used(self, slot: Slot) -> bool:
        """Whether an op that waits reads the slot's memory."""
        return slot.value is None or slot.value.untyped_storage()._cdata in self._storages

    def own(self, value: Tensor) -> Slot:
        """A slot with a value."""
        slot = Slot(meta_of(value), value)
        self.ledger.own(slot)
        return slot


def _program(code: list[tuple[Step, tuple[int, ...] | None]], results: int, wanted: set[int]) -> Program:
    last: dict[int, int] = {}
    for at, (step, outs) in enumerate(code):
        for kind, number in step.leaves:
            if kind == "v":
                last[number] = at
        for number in outs or ():
            if number >= 0:
                last.setdefault(number, at)
    done: dict[int, list[int]] = {}
    for number, at in last.items():
        if number not in wanted:
            done.setdefault(at, []).append(number)
    return Program(
        [(step.op, step.leaves, step.spec, outs, tuple(done.get(at, ()))) for at, (step, outs) in enumerate(code)],
        results,
    )


def rebuilt(flat: list[Any], spec: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments and keywords of flat leaves, as `spec` says: -1 a leaf, n a list of n, with a name a keyword."""
    args, kwargs, at = [], {}, 0
    for entry in spec:
        name, count = entry if isinstance(entry, tuple) else (None, entry)
        if count < 0:
            value, at = flat[at], at + 1
        else:
            value, at = list(flat[at : at + count]), at + count
        if name is None:
            args.append(value)
        else:
            kwargs[name] = value
    return args, kwargs


@contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, ops run on the processor and nobody listens: what is carried out was decided when it was noted."""
    with torch.no_grad(), torch._C.DisableTorchFunction(), _disable_current_modes():
        yield
