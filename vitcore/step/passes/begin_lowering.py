"""The program leaves the neutral level: from here on it is for one backend, and the header says for what."""

from __future__ import annotations

from dataclasses import replace

from vitcore.step.ir import Program
from vitcore.step.lowering import Lowering, lowering_pass


@lowering_pass("placement", required=True)
def begin_lowering(program: Program, lowering: Lowering) -> Program:
    """Set the level, and in the header whether the device is lazy and how many ranks there are."""
    attrs = {"lazy": "yes" if lowering.backend.lazy else "no", "world": str(lowering.world.size)}
    return replace(program, level=f"lowering:{lowering.backend.name}", attrs={**program.attrs, **attrs})
