"""Each op is claimed by the first kernel whose `when` accepts it; the text says which, and how often it flushes."""

from __future__ import annotations

from dataclasses import replace

from vitcore.backend import Kernel
from vitcore.errors import VitcoreError, nearest
from vitcore.step.formulas import FORMULAS
from vitcore.step.ir import FLOW, Op, Program
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("placement", required=True)
def choose_implementations(program: Program, lowering: Lowering) -> Program:
    """Set `impl`, and `flushes` where the kernel declares some, on every op outside the control flow."""

    def chosen(ops: tuple[Op, ...]) -> tuple[Op, ...]:
        return tuple(replace(_choose(op, program, lowering), body=chosen(op.body)) for op in ops)

    return replace(program, ops=chosen(program.ops))


def _variant(kernel: Kernel) -> dict[str, str]:
    if kernel.variant and (kernel.variant not in FORMULAS or FORMULAS[kernel.variant].op != kernel.op):
        known = [name for name, formula in FORMULAS.items() if formula.op == kernel.op]
        raise VitcoreError(
            f"kernel {kernel.name!r} of {kernel.op} declares the variant {kernel.variant!r}, which is no named formula of "
            f"that op{nearest(kernel.variant, known)}; known: {', '.join(known) or 'none'}"
        )
    return {"variant": kernel.variant} if kernel.variant else {}


def _choose(op: Op, program: Program, lowering: Lowering) -> Op:
    if op.name in FLOW:
        return op
    asked = [(k, k.refusal(op, lowering.world)) for k in lowering.kernels if k.op == op.name]
    willing = [k for k, why in asked if why is None]
    for kernel, why in asked:
        if why is None and (kernel is willing[-1] or lowering.fuel.take()):  # the last resort needs no fuel
            before, inside, after = kernel.flushes_for(op)
            flushes = {"flushes": f"{before}/{inside}/{after}"} if before + inside + after else {}
            return op.with_attrs(impl=kernel.name, **_variant(kernel), **flushes)
        lowering.refusals.append(f"@{program.name} {op.name}: {kernel.name} refused: {why or 'out of fuel'}")
    raise VitcoreError(
        f"{op.name} has no kernel on backend {lowering.backend.name!r} that takes it "
        f"({len(asked)} refused); provide one with @kernel({op.name!r}) or run with --explain to see why"
    )
