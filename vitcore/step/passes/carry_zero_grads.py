"""On a lazy device the gradients of the next step are zeroed in this step's update.

Without this, the first micro-batch of a step would record another graph than the others. The zeros become derived
state: made by `init` and `restore`, carried by `train`, never saved.
"""

from __future__ import annotations

from dataclasses import replace

from vitcore.step.ir import Op, Program, Value, fresh, rename
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("exact")
def carry_zero_grads(program: Program, lowering: Lowering) -> Program:
    """Move `grads.zero` from the head of `train` to its update, and make the first zeros in `init` and `restore`."""
    assert lowering.module is not None
    zero = next((op for op in lowering.module["train"].ops if op.name == "grads.zero"), None)
    if not lowering.backend.lazy or zero is None:
        return program
    if program.name == "train":
        carried = replace(zero.outs[0], ty=replace(zero.outs[0].ty, derived=True))
        at = next((i for i, v in enumerate(program.params) if not v.ty.linear), len(program.params))
        params = (*program.params[:at], carried, *program.params[at:])
        ops = rename([op for op in program.ops if op != zero], {carried.name: carried})
        return _return_zeros(replace(program, params=params, ops=ops), zero)
    return _return_zeros(program, zero) if program.name in ("init", "restore") else program


def _return_zeros(program: Program, zero: Op) -> Program:
    *ops, end = program.ops
    # Before the update, not after it: what would follow an update that flushes by itself would be a graph of its own.
    at = next((i for i, op in enumerate(ops) if op.name == "opt.update"), len(ops))
    params = next(v for v in (ops[at].args if at < len(ops) else end.args) if v.ty.kind == "params")
    made = Value(fresh(program, zero.outs[0].name + "n"), zero.outs[0].ty)
    ops.insert(at, Op("grads.zero", (params,), (made,), zero.attrs))
    state, free = ([v for v in end.args if v.ty.linear is linear] for linear in (True, False))
    return replace(program, ops=(*ops, replace(end, args=(*state, made, *free))))
