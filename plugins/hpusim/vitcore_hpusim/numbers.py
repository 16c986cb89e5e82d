"""Which Python numbers are inputs of a graph, and which are a part of it.

The bridge turns numbers that stand for tensors, and some named arguments, into small device tensors that it keeps by value, so
that another value is no new graph; 1 is dropped there, so 1 and "not 1" differ. Every other number (lerp's weight, clamp's
bounds, dropout's p) is a part of the graph: a value that changes compiles another. Source: gaudi-pytorch-bridge v1.19.0,
habana_lazy and habana_kernels/lazy_kernels.cpp, as read; not run.
"""

from __future__ import annotations

from typing import Any

_NAMED = {("add", "alpha"), ("sub", "alpha"), ("rsub", "alpha"), ("addcdiv", "value"), ("addcmul", "value")}
# The decay of the fused AdamW, which moves with the learning rate (hpex/optimizers/FusedAdamW.py).
_NAMED |= {("adamw", "decay")}
_NAMED |= {
    (name, "other")
    for name in ("eq", "ne", "lt", "le", "gt", "ge", "bitwise_and", "bitwise_or", "bitwise_xor", "xlogy", "div")
}  # fmt: skip
_TENSOR = ("Tensor", "Optional[Tensor]")


def number_arguments(op: Any) -> frozenset[str]:
    """The names of an op's arguments whose numbers are inputs of a graph."""
    base = op._schema.name.split("::")[1].rstrip("_")
    return frozenset(a.name for a in op._schema.arguments if str(a.type) in _TENSOR or (base, a.name) in _NAMED)
