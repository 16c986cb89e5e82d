"""Group device ops into regions: the units that a backend compiles, captures or flushes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitcore.step.ir import FLOW, Op, Program, Value, rename, walk
from vitcore.step.lowering import Lowering, lowering_pass
from vitcore.step.ops import OPS

# Ops of the host stand between regions: reading, copying and splitting keys is work of the host.
_HOST_OPS = frozenset({"rng.split"})


@lowering_pass("exact")
def form_regions(program: Program, lowering: Lowering) -> Program:
    """Maximal runs of device ops, cut after the ops the backend names and around kernels that flush by themselves.

    What only folds the named op's result into an accumulator rides in its region, so that a cut after backward stands
    after `grads.add`, with and without accumulation.
    """
    named: dict[str, int] = {}
    return replace(program, ops=_block(program.ops, program, lowering, named))


def _block(ops: Sequence[Op], program: Program, lowering: Lowering, named: dict[str, int]) -> tuple[Op, ...]:
    new: list[Op] = []
    run: list[Op] = []
    cut = False
    for i, op in enumerate(ops):
        if cut and not (op.name in OPS and "accumulate" in OPS[op.name].effects):
            new += _close(run, ops[i:], program, lowering, named)
            run, cut = [], False
        if _between(op):
            new += _close(run, ops[i:], program, lowering, named)
            run = []
            new.append(replace(op, body=_block(op.body, program, lowering, named)))
            continue
        before, inside, after = op.flushes
        if before:
            new += _close(run, ops[i:], program, lowering, named)
            run = []
        run.append(op)
        cut = cut or op.name in lowering.backend.split_after
        if inside or after:
            new += _close(run, ops[i + 1 :], program, lowering, named)
            run = []
    return (*new, *_close(run, (), program, lowering, named))


def _between(op: Op) -> bool:
    return op.name in FLOW or op.name in _HOST_OPS or bool(OPS[op.name].effects & {"host", "transfer"})


def _close(
    run: list[Op], rest: Sequence[Op], program: Program, lowering: Lowering, named: dict[str, int]
) -> Sequence[Op]:
    """The run as one region that yields what the rest of the block uses; the run itself where fuel is out."""
    if not run or not lowering.fuel.take():
        return run
    later = {a.name for op in walk(rest) for a in op.args}
    live = [v for op in run for v in op.outs if v.name in later]
    taken = {v.name for op in walk(program.ops) for v in (*op.outs, *op.binds)} | {v.name for v in program.params}
    inner = {v.name: Value(_inner(v.name, taken), v.ty) for v in live}
    body = [replace(op, outs=tuple(inner.get(v.name, v) for v in op.outs)) for op in rename(run, inner)]
    role = "_".join(r for op in run if (r := OPS[op.name].role)) or f"{program.name}_body"
    named[role] = named.get(role, 0) + 1
    name = role if named[role] == 1 else f"{role}_{named[role]}"
    end = Op("yield", tuple(inner.values()))
    return [Op("rt.region", (), tuple(live), {"name": name}, (), (*body, end))]


def _inner(name: str, taken: set[str]) -> str:
    inner = name + "_"
    while inner in taken:
        inner += "_"
    return inner
