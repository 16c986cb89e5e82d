"""Group device ops into regions: the units that a backend compiles, captures or flushes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count

from vitcore.step.ir import FLOW, Op, Program, Value, rename, values, walk
from vitcore.step.lowering import Lowering, lowering_pass
from vitcore.step.ops import OPS

# Ops of the host stand between regions: reading, copying, splitting keys and counting are work of the host.
_HOST_OPS = frozenset({"rng.split", "data.advance"})


@lowering_pass("exact")
def form_regions(program: Program, lowering: Lowering) -> Program:
    """Maximal runs of device ops, cut after the ops the backend names and around kernels that flush by themselves.

    What only folds the named op's result into an accumulator rides in its region, so that a cut after backward stands
    after `grads.add`, with and without accumulation; and so does an `identity`, which alone would be a region without work.
    """
    taken = {str(v) for v in values(program)} | {op.attrs["name"] for op in walk(program.ops) if op.name == "rt.region"}
    return replace(program, ops=_block(program.ops, program, lowering, taken))


def _block(ops: Sequence[Op], program: Program, lowering: Lowering, taken: set[str]) -> tuple[Op, ...]:
    new: list[Op] = []
    run: list[Op] = []
    cut = False
    for i, op in enumerate(ops):
        rides = op.attrs.get("impl") == "identity" or (op.name in OPS and "accumulate" in OPS[op.name].effects)
        if (cut and not rides) or _between(op) or op.flushes[0]:
            new += _close(run, ops[i:], program, lowering, taken)
            run, cut = [], False
        if _between(op):
            new.append(replace(op, body=_block(op.body, program, lowering, taken)) if op.name == "repeat" else op)
            continue
        run.append(op)
        cut = cut or op.name in lowering.backend.split_after
        if sum(op.flushes[1:]):
            new += _close(run, ops[i + 1 :], program, lowering, taken)
            run, cut = [], False
    return (*new, *_close(run, (), program, lowering, taken))


def _between(op: Op) -> bool:
    return op.name in FLOW or op.name in _HOST_OPS or bool(OPS[op.name].effects & {"host", "transfer"})


def _close(run: list[Op], rest: Sequence[Op], program: Program, lowering: Lowering, taken: set[str]) -> Sequence[Op]:
    """The run as one region that yields what the rest of the block uses; the run itself where fuel is out."""
    if not run or not lowering.fuel.take():
        return run
    later = {a.name for op in walk(rest) for a in op.args}
    live = [v for op in run for v in op.outs if v.name in later]
    inner = {v.name: Value(_unused(f"{v}_", ("_" * i for i in count()), taken)[1:], v.ty) for v in live}
    body = [replace(op, outs=tuple(inner.get(v.name, v) for v in op.outs)) for op in rename(run, inner)]
    roles = [r for op in run if (r := OPS[op.name].role)]
    role = "_".join(r for r in roles if r[0] != "(") or "_".join(r.strip("()") for r in roles) or f"{program.name}_body"
    name = _unused(role, ("" if i == 1 else f"_{i}" for i in count(1)), taken)
    return [Op("rt.region", (), tuple(live), {"name": name}, (), (*body, Op("yield", tuple(inner.values()))))]


def _unused(stem: str, tails: Iterable[str], taken: set[str]) -> str:
    """The stem with the first tail that makes a name which is not taken; from then on it is."""
    name = next(stem + tail for tail in tails if stem + tail not in taken)
    taken.add(name)
    return name
