"""All that a plugin author imports: `from vitcore.api import Backend, hookimpl, kernel`."""

from vitcore.backend import Backend, Kernel, Simulator, World, kernel
from vitcore.errors import VitcoreError
from vitcore.flags import Flag
from vitcore.hooks import hookimpl
from vitcore.runtime.claims import COMPILED, MULTI_TENSOR
from vitcore.step.ir import Op, Program, Ty, Value
from vitcore.step.lowering import Lowering, Pass, lowering_pass

__all__ = [
    "COMPILED",
    "MULTI_TENSOR",
    "Backend",
    "Flag",
    "Kernel",
    "Lowering",
    "Op",
    "Pass",
    "Program",
    "Simulator",
    "Ty",
    "Value",
    "VitcoreError",
    "World",
    "hookimpl",
    "kernel",
    "lowering_pass",
]
