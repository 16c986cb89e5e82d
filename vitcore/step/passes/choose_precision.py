"""The one pass that may set how precisely the model computes."""

from __future__ import annotations

from dataclasses import replace

from vitcore.errors import VitcoreError
from vitcore.step.ir import Program
from vitcore.step.lowering import Lowering, lowering_pass, with_attrs
from vitcore.step.ops import RUNS_MODEL

# What each policy sets on the ops that run the model; parameters, gradients and reductions stay fp32 in all of them.
# bf16 is what the device's own autocast makes of it, bf16-casts the casts of `vitcore.runtime.casts`, alike everywhere.
# tf32 is a switch of the device (`Backend.arithmetic`), so that the header alone shows it.
POLICIES: dict[str, dict[str, str]] = {"fp32": {}, "tf32": {},
                                       "bf16": {"autocast": "bf16"}, "bf16-casts": {"casts": "bf16"}}  # fmt: skip


@lowering_pass("numerics", required=True)
def choose_precision(program: Program, lowering: Lowering) -> Program:
    """Write the policy into the header and onto the ops that run the model; refuse what the backend lacks."""
    name, backend = lowering.precision, lowering.backend
    if name not in POLICIES or name not in backend.precisions:
        offered = ", ".join(p for p in backend.precisions if p in POLICIES)
        raise VitcoreError(f"precision {name!r} is not offered by backend {backend.name!r}; choose one of: {offered}")

    program = replace(program, attrs={**program.attrs, "precision": name})
    return with_attrs(program, RUNS_MODEL, None, **POLICIES[name])
