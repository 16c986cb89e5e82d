"""What a run counts: the growth of every count, phase by phase, and which op or mark of the program made the device work.

Kernels and marks are looked up on the runtime at each call, so they can be wrapped while a run is watched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vitcore.backend import resolve
from vitcore.doctor.flushes import predicted
from vitcore.doctor.lines import defined, here, names_a_line
from vitcore.doctor.static import title
from vitcore.runtime.codegen import call_name
from vitcore.runtime.events import Event
from vitcore.runtime.executable import Executable
from vitcore.step.ir import FLOW, Op, walk
from vitcore.step.ops import OPS

COUNTS = ("flushes", "marks", "compiles", "cache_hits", "fallbacks", "host_reads")


@dataclass(frozen=True)
class Row:
    """What one phase counted; `predicted` is what the texts of its programs say of flushes, -1 where they say nothing."""

    phase: str
    program: str
    predicted: int
    flushes: int
    marks: int
    compiles: int
    cache_hits: int
    fallbacks: int
    host_reads: int


@dataclass(frozen=True)
class Seen:
    """One time that the device was seen to work: in which phase, at which op or mark, why and by which line."""

    phase: str
    at: str
    cause: str
    line: str
    ops: int
    """Operations in the graph; -1 where the device keeps no record."""
    compiled: bool
    peak_bytes: int
    declared: bool
    """Whether the text says it: a mark, or a flush that the kernel declares."""


class Watch:
    """Use as a context around a run of the executable; `phase` names what is done in it."""

    def __init__(self, exe: Executable) -> None:
        self.exe, self.rt = exe, exe.rt
        simulator = exe.rt.backend.simulator
        named = simulator.events if simulator else None
        self.events: Callable[[], Sequence[Event]] | None = resolve(named) if named else None
        self.counts_device = "flushes" in self.rt.device_counters()
        self.rows: list[Row] = []
        self.seen: list[Seen] = []
        self.batches: list[tuple[str, tuple[int, ...]]] = []
        """The shape of every training batch that was put on the device, with its phase."""
        self.now, self.program, self.at, self.op = "", "", "", ""
        self._budget = 0
        self._last: dict[str, int] = {}
        self.fell_back = 0
        self.fine = False
        """Whether what the device does can be asked for within a step, without changing it."""
        self._declared = {
            (program.name, call_name(op)): (title(op), sum(op.flushes))
            for program in exe.module.programs for op in walk(program.ops) if op.name not in FLOW
        }  # fmt: skip
        self._places = {p.name: _marks(p.ops) for p in exe.module.programs}
        self._marked = 0
        self._wrapped: list[str] = []

    # ---- wrapping ----

    def __enter__(self) -> Watch:
        for name, method in list(vars(self.rt).items()):
            if "__" in name and name.partition("__")[0].replace("_", ".", 1) in OPS and callable(method):
                setattr(self.rt, name, self._kernel(name, method))
                self._wrapped.append(name)
        vars(self.rt)["mark"] = self._mark(self.rt.mark)
        self._flush = self.rt._mark
        self.rt._mark = self._quietly(self._flush) if self._flush else None
        self.fine = self.events is not None or (self.counts_device and not self._counting_flushes())
        self.settle("before the run", judged=False)
        return self

    def __exit__(self, *exc: object) -> None:
        del vars(self.rt)["mark"]
        self.rt._mark = self._flush
        for name in self._wrapped:
            setattr(self.rt, name, vars(self.rt)[name].__wrapped__)

    @contextmanager
    def phase(self, name: str, program: str = "", times: int = 1, said: int | None = None) -> Iterator[None]:
        """What is done inside counts as `name`; `times` runs of `program` are what the texts are asked about."""
        self.now, self.program, self._marked = name, program, 0
        before = asdict(self.exe.stats())
        self.settle("before it", judged=False)
        try:
            yield
        finally:
            self.rt.wait()
            self.settle("after it", judged=False)
            after = asdict(self.exe.stats())
            lazy = self.rt.backend.lazy and program in ("train", "eval")
            expected = times * predicted(self.exe.module[program].ops) if lazy else -1
            self.rows.append(Row(name, program, expected, **{c: after[c] - before[c] for c in COUNTS}))
            self.now = self.program = ""

    @property
    def judged(self) -> bool:
        """Whether what runs now is a program whose text says what flushes."""
        return self.program in ("train", "eval", "log")

    @property
    def in_region(self) -> bool:
        """Whether a kernel of a region runs now: one that may not wait for the device."""
        return bool(self.op) and not (OPS[self.op].effects & {"host", "transfer"}) and self.op != "rng.split"

    def _kernel(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        op = name.partition("__")[0].replace("_", ".", 1)

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.op:  # called by another kernel, which answers for it
                return method(*args, **kwargs)
            self.settle("between ops")
            self.at, declared = self._declared.get((self.program, name), (f"{op} by {name.partition('__')[2]}", 0))
            self.op, self._budget = op, declared + (op == "metrics.read")
            try:
                out = method(*args, **kwargs)
                self.settle(self.at)
            finally:
                self.op, self._budget = "", 0
            if op == "data.put" and self.program == "train":
                self.batches.append((self.now, tuple(out.images.shape)))
            return out

        watched.__wrapped__ = method
        return watched

    def _mark(self, mark: Callable[[], None]) -> Callable[[], None]:
        def watched() -> None:
            if self.op:  # by a kernel, whose line it is
                line = here()
                mark()
                self.settle(self.at, line=line)
                return
            self.settle("between ops")
            self.at, self._budget = self._place(), 1
            mark()
            self.settle(self.at)
            self._budget = 0

        return watched

    def _place(self) -> str:
        """Which of the program's marks this is: they come in its order."""
        places = self._places.get(self.program, []) if self.judged else []
        self._marked += 1
        return f"rt.mark after {places[(self._marked - 1) % len(places)]}" if places else "rt.mark"

    @staticmethod
    def _quietly(flush: Callable[[], object]) -> Callable[[], object]:
        """What a device does to carry out its graph is no op of the program's, and is kept from the modes of a probe."""

        def flushed() -> object:
            with _disable_current_modes():
                return flush()

        return flushed

    # ---- what the device did since it was last asked ----

    def settle(self, at: str, *, cause: str = "", line: str = "", judged: bool = True) -> int:
        """Note what made the device work since the last call, as done at `at`; `cause` and `line` are of the op of torch that
        was called, where that is known. How many times it was."""
        if not self.fine:
            return 0
        if self.events:
            found = list(self.events())
            self.fell_back = sum(e.cause.startswith("fallback") for e in found)
        else:
            found = _counted(self._grown())
        kernel = self.definition()
        judged = judged and self.judged
        for event in found:
            why = event.cause if event.cause not in ("", "mark") else cause or event.cause
            may = self.op == "metrics.read" or (_may(why) and not self.fell_back)
            declared = not judged or (self._budget > 0 and may)
            self._budget -= judged and declared
            where = event.line if names_a_line(event.line) else line or kernel
            self.seen.append(
                Seen(self.now, at, why or "a flush", where, event.ops, event.compiled, event.peak_bytes, declared)
            )
        return len(found)

    def _counting_flushes(self) -> bool:
        """Whether the device is flushed by being asked what it counted, as where a thread must come to its end first: then it
        is asked between steps alone."""
        x = torch.ones(2).to(self.rt.device) + 1
        before = self.rt.device_counters()["flushes"]
        del x
        x = torch.ones(2).to(self.rt.device) + 1
        flushed = self.rt.device_counters()["flushes"] != before
        del x
        return flushed

    def _grown(self) -> dict[str, int]:
        """The growth of the device's own counters since this was last asked."""
        now = dict(self.rt.device_counters())
        grown = {k: v - self._last.get(k, 0) for k, v in now.items()}
        self._last = now
        self.fell_back = grown.get("fallbacks", 0)
        return grown

    def definition(self) -> str:
        """Where the kernel that runs now is written."""
        if not self.op:
            return ""
        impl = self.at.partition(" by ")[2].partition(" (")[0]
        fn = getattr(self.rt, f"{self.op.replace('.', '_')}__{impl}", None)
        return defined(fn)


def _may(cause: str) -> bool:
    """Whether a kernel may declare this cause: waiting for a collective is its work, a value read by the host is not."""
    return not any(word in cause for word in ("item", "_local_scalar_dense", "host", "fallback"))


def _counted(grown: dict[str, int]) -> list[Event]:
    """Events without a record: as many as were counted, the compiled ones last."""
    flushes, compiles = max(grown.get("flushes", 0), 0), max(grown.get("compiles", 0), 0)
    flushes = max(flushes, compiles)
    return [Event("", "", -1, i >= flushes - compiles, 0) for i in range(flushes)]


def _marks(ops: Sequence[Op]) -> list[str]:
    """What each mark of a program stands after, in the order in which they come; a loop's as often as it runs."""
    found: list[str] = []
    for op in ops:
        found += [op.attrs.get("after", "")] if op.name == "rt.mark" else _marks(op.body) * int(op.attrs.get("n", "1"))
    return found
