"""`repeat {n=1}` becomes its body: without accumulation there is no loop."""

from __future__ import annotations

from dataclasses import replace

from vitcore.step.ir import Op, Program, Value, rename
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("exact")
def inline_single_repeat(program: Program, lowering: Lowering) -> Program:
    """Put the body of every loop of one round in the loop's place."""
    ops: list[Op] = []
    results: dict[str, Value] = {}
    for op in rename_later(program.ops, results):
        if op.name == "repeat" and op.attrs["n"] == "1" and lowering.fuel.take():
            body = rename(op.body, {b.name: a for b, a in zip(op.binds, op.args, strict=True)})
            results.update({v.name: y for v, y in zip(op.outs, body[-1].args, strict=True)})
            ops += body[:-1]
        else:
            ops.append(op)
    return replace(program, ops=tuple(ops))


def rename_later(ops: tuple[Op, ...], names: dict[str, Value]):
    """The ops one by one, each with the replacements that are known by then."""
    for op in ops:
        yield from rename([op], names)
