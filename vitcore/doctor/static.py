"""What the lowered text says: regions in order, what flushes and why, and how many graphs a lazy device will compile.

Imports no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vitcore.doctor.flushes import predicted
from vitcore.step.ir import FLOW, Module, Op, Program, walk
from vitcore.step.ops import FUNCTIONS, OPS

PROGRAMS = {"init": "a start", "train": "a step", "eval": "an evaluated batch", "log": "a log"}
"""The programs that a run calls, and what calling each once is."""


@dataclass(frozen=True)
class Item:
    """One thing in a program's order: `host` work, a `region` of the device, a `mark`, a kernel's own `flush`, a `read` by
    the host, or a `loop` around others."""

    kind: str
    name: str
    ops: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    """The flushes of a region's own kernels in its midst, each with its cause."""
    times: int = 1
    body: tuple[Item, ...] = ()


def outline(ops: Sequence[Op], lazy: bool) -> tuple[Item, ...]:
    """The ops of a program or of a loop as items."""
    return tuple(item for op in ops for item in _items(op, lazy))


def _items(op: Op, lazy: bool) -> Iterator[Item]:
    if op.name in ("yield", "return"):
        return
    if op.name == "repeat":
        yield Item("loop", "repeat", times=int(op.attrs["n"]), body=outline(op.body, lazy))
    elif op.name == "rt.mark":
        yield Item("mark", f"rt.mark after {op.attrs.get('after', 'what came before')}")
    elif op.name == "rt.region":
        yield from _region(op.attrs["name"], [o for o in op.body if o.name != "yield"], lazy)
    elif op.name == "metrics.read":
        yield Item("read", title(op))
    elif OPS[op.name].effects & {"host", "transfer"} or op.name == "rng.split":
        yield Item("host", title(op))
    else:  # a device op that no region holds, as where form_regions is left out
        yield from _region(op.name, [op], lazy)


def _region(name: str, ops: Sequence[Op], lazy: bool) -> Iterator[Item]:
    causes = {
        where: [f for op in ops for f in _own(op, i, where)] for i, where in enumerate(("before", "inside", "after"))
    }
    if not lazy:
        causes = {where: [] for where in causes}
    yield from (Item("flush", cause) for cause in causes["before"])
    yield Item("region", name, tuple(map(title, ops)), tuple(causes["inside"]))
    yield from (Item("flush", cause) for cause in causes["after"])


def _own(op: Op, at: int, where: str) -> list[str]:
    said = "inside its work" if where == "inside" else f"{where} its work"
    return [f"{title(op)}, {said}"] * op.flushes[at]


def title(op: Op) -> str:
    """An op and the kernel that carries it out."""
    claimed = [f"{f}={op.attrs[f]}" for f in FUNCTIONS if f in op.attrs]
    return f"{op.name} by {op.attrs.get('impl', '?')}" + (f" ({', '.join(claimed)})" if claimed else "")


def flattened(items: Sequence[Item], times: int = 1) -> Iterator[tuple[Item, int]]:
    """Every item but the loops, with how often it comes."""
    for item in items:
        if item.kind == "loop":
            yield from flattened(item.body, times * item.times)
        else:
            yield item, times


def causes(items: Sequence[Item]) -> dict[str, int]:
    """What flushes, by cause, loops counted; reads by the host, which flush too, among them."""
    found: Counter[str] = Counter()
    for item, times in flattened(items):
        if item.kind in ("mark", "flush"):
            found[item.name] += times
        elif item.kind == "read":
            found[f"{item.name}: the host waits for what is pending"] += times
        for cause in item.inside:
            found[cause] += times
    return dict(found)


@dataclass(frozen=True)
class Outline:
    """A program, read: `flushes` counts its marks and its kernels' own flushes, `reads` those of the host."""

    name: str
    items: tuple[Item, ...]
    regions: int
    marks: int
    flushes: int
    causes: dict[str, int]
    reads: int
    graphs: int
    """How many different graphs it records at most when it first runs; 0 where the device is not lazy."""
    graphs_again: int
    """How many more when it runs again."""


def read_program(program: Program) -> Outline:
    """The outline of a lowered program."""
    lazy = program.attrs.get("lazy") == "yes"
    items = outline(program.ops, lazy)
    flat = list(flattened(items))
    first, again = _graphs(program) if lazy else (0, 0)
    return Outline(
        program.name, items,
        regions=sum(times for item, times in flat if item.kind == "region"),
        marks=sum(times for item, times in flat if item.kind == "mark"),
        flushes=predicted(program.ops) if lazy else 0,
        causes=causes(items) if lazy else {},
        reads=sum(times for item, times in flat if item.kind == "read"),
        graphs=first, graphs_again=again,
    )  # fmt: skip


def read_module(module: Module) -> dict[str, Outline]:
    """The outlines of the programs that a run calls."""
    return {name: read_program(module[name]) for name in PROGRAMS}


def _graphs(program: Program) -> tuple[int, int]:
    """The graphs that a run of the program records, and those that a second run adds: what is pending at a flush is a graph,
    named by the ops that recorded it. Two rounds of a loop show what every later one records."""
    known: set[tuple[str, ...]] = set()
    pending: list[str] = []

    def flush() -> None:
        if pending:
            known.add(tuple(pending))
            pending.clear()

    def record(ops: Sequence[Op]) -> None:
        for op in ops:
            if op.name in FLOW:
                for _ in range(min(int(op.attrs.get("n", "1")), 2)):
                    record(op.body)
                if op.name == "rt.mark":
                    flush()
                continue
            before, inside, after = op.flushes
            name = " ".join(map(str, op.outs))
            for _ in range(min(before, 1)):
                flush()
            for part in range(inside + 1 if _records(op) else 0):
                pending.append(f"{name}#{part}")
                if part < inside:
                    flush()
            if after or op.name == "metrics.read":
                flush()

    record(program.ops)
    first = len(known)
    record(program.ops)
    return first, len(known) - first


def _records(op: Op) -> bool:
    """Whether an op puts anything into a graph: copies to the device do, for what they convert there."""
    on_host = "host" in OPS[op.name].effects and op.name != "metrics.read"
    return not (on_host or op.name == "rng.split" or op.attrs.get("impl") == "identity")


def collectives(program: Program) -> list[Op]:
    """The ops that reduce over ranks; none on one."""
    return [
        op for op in walk(program.ops)
        if op.name in OPS and "collective" in OPS[op.name].effects and op.attrs.get("impl") != "identity"
    ]  # fmt: skip
