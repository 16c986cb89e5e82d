"""What the blocks compute is not kept for the backward but computed once more there: less memory for more work."""

from __future__ import annotations

from vitcore.step.ir import Program
from vitcore.step.lowering import Lowering, lowering_pass, with_attrs


@lowering_pass("exact")
def rematerialise(program: Program, lowering: Lowering) -> Program:
    """Set `remat=blocks` on `model.forward` where the configuration asks for it."""
    return program if lowering.remat == "none" else with_attrs(program, ("model.forward",), remat=lowering.remat)
