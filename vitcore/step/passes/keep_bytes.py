"""Pictures stay bytes until the model's first product, whose weights take over what would make numbers of them."""

from __future__ import annotations

from vitcore.step.ir import Program, walk
from vitcore.step.lowering import Lowering, lowering_pass, with_attrs


@lowering_pass("algebraic")
def keep_bytes(program: Program, lowering: Lowering) -> Program:
    """Set `pixels=bytes` on `data.put` where nothing but a mirror is between it and the model."""
    assert lowering.module is not None
    # A batch that is read ahead by `init` or `restore` is what `train` begins with.
    reader = program if program.name == "eval" else lowering.module["train"]
    if any(op.name == "data.augment" and op.attrs["do"] != "flip" for op in walk(reader.ops)):
        return program
    return with_attrs(program, ("data.put",), lowering.fuel, pixels="bytes")
