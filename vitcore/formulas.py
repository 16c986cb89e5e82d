"""Named formulas: where a kernel computes something else than the reference on purpose, and says so.

A kernel declares one (`@kernel(..., variant=NAME)`), the lowered text prints it on the op, and the conformance kit's
float64 side computes it too. A kernel that differs and declares nothing is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitcore.backend import Kernel
from vitcore.errors import VitcoreError, nearest


@dataclass(frozen=True)
class Formula:
    """Of which op, and what is computed instead, with its source."""

    op: str
    says: str


FORMULAS: dict[str, Formula] = {
    "gelu_tanh": Formula("model.forward",
        "GELU by its tanh approximation (arXiv 1606.08415, section 2) also where the model's variant says exact; "
        "`model.apply` of the same backend computes it too"),
    "adamw_eps_before_correction": Formula("opt.update",
        "Adam's epsilon is added to sqrt(v) before the bias correction (arXiv 1412.6980, the order of section 2's last "
        "paragraph), as fused kernels of several vendors do; the reference, as torch, adds it after"),
}  # fmt: skip


def declared(kernel: Kernel) -> dict[str, str]:
    """The `variant` attribute of an op by this kernel; a formula that is not in the table is refused."""
    if kernel.variant and (kernel.variant not in FORMULAS or FORMULAS[kernel.variant].op != kernel.op):
        known = [name for name, formula in FORMULAS.items() if formula.op == kernel.op]
        raise VitcoreError(
            f"kernel {kernel.name!r} of {kernel.op} declares the variant {kernel.variant!r}, which is no named formula of "
            f"that op{nearest(kernel.variant, known)}; known: {', '.join(known) or 'none'}"
        )
    return {"variant": kernel.variant} if kernel.variant else {}
