"""The batch of the next micro-step is read and put on the device before this one's regions run.

The batch at the cursor becomes derived state: made by `init` and `restore`, carried by `train`, never saved. The cursor stays
where that batch begins, so a checkpoint says the same with and without this pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitcore.step.ir import Op, Program, Ty, Value, fresh, rename
from vitcore.step.lowering import Lowering, lowering_pass

BATCH = Ty("batch", ("dev",))


@lowering_pass("exact")
def prefetch(program: Program, lowering: Lowering) -> Program:
    """Carry the batch at hand from step to step, where the backend copies while it computes."""
    if not lowering.backend.prefetch or program.name not in ("init", "train", "restore"):
        return program
    *ops, end = program.ops
    ahead, inner, host = (Value(fresh(program, stem), BATCH) for stem in ("ahead", "inner", "read"))
    given = replace(end, args=(*end.args, ahead))
    if program.name != "train":
        cursor, read = next(v for v in end.args if v.ty.kind == "cursor"), replace(host, ty=Ty("batch", ("host",)))
        return replace(program, ops=(*ops, *_read(cursor, read, ahead), given))
    now = Value(fresh(program, "now"), replace(BATCH, derived=True))
    at = next(i for i, v in enumerate(program.params) if not v.ty.linear)
    params = (*program.params[:at], now, *program.params[at:])
    loop = next((i for i, op in enumerate(ops) if op.name == "repeat"), None)
    if loop is None:
        return replace(program, params=params, ops=(*_shift(ops, now, ahead), given))
    held = Value(fresh(program, "held"), BATCH)
    *body, back = ops[loop].body
    ops[loop] = replace(
        ops[loop], args=(*ops[loop].args, now), binds=(*ops[loop].binds, held), outs=(*ops[loop].outs, ahead),
        body=(*_shift(body, held, inner), replace(back, args=(*back.args, inner))),
    )  # fmt: skip
    return replace(program, params=params, ops=(*ops, given))


def _shift(ops: Sequence[Op], now: Value, ahead: Value) -> tuple[Op, ...]:
    """The ops with the batch at hand in place of the one that they read; the next one is read where they read it."""
    at = next(i for i, op in enumerate(ops) if op.name == "data.next")
    put = next(op for op in ops if op.name == "data.put")
    host, cursor = ops[at].outs
    first = (Op("data.advance", ops[at].args, (cursor,)), *_read(cursor, host, ahead))
    rest = rename([op for op in ops[at + 1 :] if op is not put], {put.outs[0].name: now})
    return (*ops[:at], *first, *rest)


def _read(cursor: Value, host: Value, batch: Value) -> tuple[Op, Op]:
    return Op("data.peek", (cursor,), (host,)), Op("data.put", (host,), (batch,), {"ahead": "yes"})
