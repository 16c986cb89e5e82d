"""What the head does not read is not computed.

Where it reads the class token alone, the last block's queries, output projection and MLP are needed for that one token. The
model knows which it is; where it reads the mean of all tokens the attribute changes nothing.
"""

from __future__ import annotations

from vitcore.step.ir import Program
from vitcore.step.lowering import Lowering, lowering_pass, with_attrs
from vitcore.step.ops import RUNS_MODEL


@lowering_pass("algebraic")
def skip_unread(program: Program, lowering: Lowering) -> Program:
    """Say on every op that runs the model that the pooled tokens alone are read."""
    return with_attrs(program, RUNS_MODEL, lowering.fuel, reads="pooled")
