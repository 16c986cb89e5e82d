"""All that a plugin author imports: `from vitcore.api import Backend, hookimpl, kernel`."""

from vitcore.backend import Backend, Keeps, Kernel, Simulator, World, kernel
from vitcore.errors import VitcoreError
from vitcore.flags import Flag
from vitcore.hooks import hookimpl
from vitcore.runtime.claims import AT_ONCE, BUFFERS, CAPTURABLE, COMPILED, MULTI_TENSOR, compiled_if_asked
from vitcore.step.ir import Op, Program, Ty, Value
from vitcore.step.lowering import Lowering, Pass, lowering_pass
from vitcore.tuning import Shape

__all__ = [
    "AT_ONCE",
    "BUFFERS",
    "CAPTURABLE",
    "COMPILED",
    "MULTI_TENSOR",
    "Backend",
    "Flag",
    "Keeps",
    "Kernel",
    "Lowering",
    "Op",
    "Pass",
    "Program",
    "Shape",
    "Simulator",
    "Ty",
    "Value",
    "VitcoreError",
    "World",
    "compiled_if_asked",
    "hookimpl",
    "kernel",
    "lowering_pass",
]
