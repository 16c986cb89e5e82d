"""Where the device computes in bf16 by narrow weights, they are made once a step, and not by autocast in each micro-batch.

The copy stands before the first use in the block in which the parameters come to be, so before a loop and not in it.
Parameters, optimizer and the sum of gradients stay f32: what is saved is the same with and without this pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitcore.step.ir import Op, Program, Value, fresh, walk
from vitcore.step.lowering import Lowering, lowering_pass
from vitcore.step.ops import NARROW, RUNS_MODEL


@lowering_pass("numerics")
def narrow_weights(program: Program, lowering: Lowering) -> Program:
    """`params.narrow` for all parameters that an op which runs the model reads, and that op in their dtype."""
    if not (lowering.backend.narrow_weights and program.attrs.get("precision") == "bf16" and lowering.fuel.take()):
        return program
    read = {op.args[0].name for op in walk(program.ops) if op.name in RUNS_MODEL}
    copies = {name: Value(fresh(program, f"{name}n"), NARROW) for name in read}

    def block(made: Sequence[Value], ops: Sequence[Op]) -> tuple[Op, ...]:
        out, wide = list[Op](), [v for v in made if v.name in copies]
        for op in ops:
            for v in [v for v in wide if any(_reads(o, v) for o in walk([op]))]:
                out.append(Op("params.narrow", (v,), (copies[v.name],)))
                wide.remove(v)
            if op.name in RUNS_MODEL:
                attrs = {k: v for k, v in op.attrs.items() if k != "autocast"}
                op = replace(op, args=(copies[op.args[0].name], *op.args[1:]), attrs=attrs)
            out.append(replace(op, body=block(op.binds, op.body)))
            wide += [v for v in op.outs if v.name in copies]
        return tuple(out)

    return replace(program, ops=block(program.params, program.ops))


def _reads(op: Op, params: Value) -> bool:
    return op.name in RUNS_MODEL and op.args[0] == params
