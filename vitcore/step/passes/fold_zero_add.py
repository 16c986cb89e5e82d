"""Adding to fresh zeros is no work: `grads.add (grads.zero p), d` becomes `d`."""

from __future__ import annotations

from dataclasses import replace

from vitcore.step.ir import Op, Program, Value, rename
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("exact")
def fold_zero_add(program: Program, lowering: Lowering) -> Program:
    """Remove each zero whose one use is an add in the same block, and that add."""
    zeros = {op.outs[0].name: op for op in program.ops if op.name == "grads.zero"}
    names: dict[str, Value] = {}
    gone: list[Op] = []
    for op in program.ops:
        if op.name != "grads.add":
            continue
        for zero, other in (op.args, op.args[::-1]):
            if zero.name in zeros and lowering.fuel.take():
                names[op.outs[0].name] = names.get(other.name, other)
                gone += [op, zeros[zero.name]]
                break
    kept = tuple(op for op in program.ops if not any(op is g for g in gone))
    return replace(program, ops=rename(kept, names))
