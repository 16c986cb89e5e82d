"""Each op is claimed by the first kernel whose `when` accepts it; the text says which, and how often it flushes."""

from __future__ import annotations

from dataclasses import replace

from vitcore.backend import Kernel
from vitcore.errors import VitcoreError
from vitcore.formulas import declared
from vitcore.step.ir import FLOW, Op, Program
from vitcore.step.lowering import Lowering, lowering_pass
from vitcore.step.ops import FUNCTIONS, RUNS_MODEL


@lowering_pass("placement", required=True)
def choose_implementations(program: Program, lowering: Lowering) -> Program:
    """Set `impl`, and `flushes` where the kernel declares some, on every op outside the control flow."""

    def chosen(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(replace(_choose(op, program, lowering), body=chosen(op.body)) for op in ops)

    return replace(program, ops=chosen(program.ops))


def _choose(op: Op, program: Program, lowering: Lowering) -> Op:
    if op.name in FLOW:
        return op
    kernel = _claim(op.name, op, program, lowering)
    if kernel is None:
        count = sum(k.op == op.name for k in lowering.kernels)
        raise VitcoreError(f"{op.name} has no kernel on backend {lowering.backend.name!r} that takes it ({count} refused); "
                           f"provide one with @kernel({op.name!r}) or run with --explain to see why")  # fmt: skip
    before, inside, after = kernel.flushes_for(op)
    flushes = {"flushes": f"{before}/{inside}/{after}"} if before + inside + after else {}
    asked = FUNCTIONS if op.name in RUNS_MODEL else ()
    functions = {f: claimed.name for f in asked if (claimed := _claim(f, op, program, lowering))}
    return op.with_attrs(impl=kernel.name, **functions, **declared(kernel), **flushes)


def _claim(name: str, op: Op, program: Program, lowering: Lowering) -> Kernel | None:
    """The first kernel of that op, or function of the model, that takes the op; a function's reference is no kernel."""
    asked = [(k, k.refusal(op, lowering.world)) for k in lowering.kernels if k.op == name]
    last = next((k for k, why in reversed(asked) if why is None and name == op.name), None)
    for kernel, why in asked:
        if why is None and (kernel is last or lowering.fuel.take()):  # the last resort needs no fuel
            return kernel
        lowering.refusals.append(f"@{program.name} {name}: {kernel.name} refused: {why or 'out of fuel'}")
    return None
