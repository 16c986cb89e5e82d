"""`model.forward` and `model.backward` become one op where the backend has a kernel for it.

The sum over micro-batches goes in with it where there is one, so that gradients are added up where they are made, and are
never all there twice.
"""

from __future__ import annotations

from dataclasses import replace

from vitcore.step.ir import Op, Program, walk
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("exact")
def fuse_grad(program: Program, lowering: Lowering) -> Program:
    """Put `model.grad` in place of each backward, of the forward whose tape it takes and of the `grads.add` that follows."""
    if not any(k.op == "model.grad" for k in lowering.kernels):
        return program

    def fused(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        out = [replace(op, body=fused(op.body)) for op in ops]
        for back in [op for op in out if op.name == "model.backward"]:
            ahead = next((op for op in out if op.name == "model.forward" and op.outs[-1] == back.args[0]), None)
            if ahead is None or not lowering.fuel.take():
                continue
            add = next((op for op in out if op.name == "grads.add" and op.args[1] == back.outs[0]), None)
            # The sum must be there before the forward, and be nobody's until it is added to.
            between = walk(out[out.index(ahead) : out.index(add)]) if add else ()
            if add and any(add.args[0] in (*op.args, *op.outs) for op in between):
                add = None
            given, made = ((add.args[0],), add.outs) if add else ((), back.outs)
            one = Op("model.grad", (*ahead.args, *given), (ahead.outs[0], *made), ahead.attrs)
            out = [one if op is ahead else op for op in out if op is not back and op is not add]
        return tuple(out)

    return replace(program, ops=fused(program.ops))
