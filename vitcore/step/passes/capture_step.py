"""A step that is one region is recorded by the device once and launched as a whole from then on."""

from __future__ import annotations

from vitcore.step.ir import Program
from vitcore.step.lowering import Lowering, lowering_pass, with_attrs


@lowering_pass("placement")
def capture_step(program: Program, lowering: Lowering) -> Program:
    """Set `capture=graph` on the region of `@train` where it is the only one: without accumulation, on one rank."""
    regions = [op for op in program.ops if op.name in ("rt.region", "repeat")]
    alone = program.name == "train" and len(regions) == 1 and regions[0].name == "rt.region"
    if not (lowering.backend.capture and alone and lowering.world.size == 1 and lowering.fuel.take()):
        return program
    return with_attrs(program, ("rt.region",), capture="graph")
