"""On a lazy device, one mark after each region, except where a kernel flushes by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitcore.step.ir import Op, Program
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("placement")
def place_marks(program: Program, lowering: Lowering) -> Program:
    """Put `rt.mark` after every region that is not flushed at its end or by the kernel that comes next."""
    return replace(program, ops=_block(program.ops)) if lowering.backend.lazy else program


def _block(ops: Sequence[Op]) -> tuple[Op, ...]:
    out: list[Op] = []
    for op, after in zip(ops, (*ops[1:], None), strict=False):
        out.append(replace(op, body=_block(op.body)))
        if op.name != "rt.region":
            continue
        flushed = op.body[-2].flushes[2] > 0
        flushed_next = after is not None and after.name == "rt.region" and after.body[0].flushes[0] > 0
        marked = after is not None and after.name == "rt.mark"
        if not (flushed or flushed_next or marked):
            out.append(Op("rt.mark", attrs={"after": op.attrs["name"]}))
    return tuple(out)
