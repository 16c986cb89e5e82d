"""The compute leaf `compiled`: the model's repeated block through torch.compile, the rest as it is.

One block is compiled and runs for all of them: compiling whole models takes minutes and gains nothing here. Which compiler is
the backend's to say (`Backend.compiler`).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.runtime import fused_leaf
from vitcore.runtime.opening import explained
from vitcore.runtime.reference import model

if TYPE_CHECKING:
    from vitcore.runtime.reference.grads import Grads
    from vitcore.runtime.reference.model import Tape
    from vitcore.runtime.runtime import Runtime


def _compile(rt: Runtime) -> None:
    """Compile the blocks, once for each model."""
    if rt.backend.compiler is None:
        raise VitcoreError(
            f"backend {rt.backend.name!r} offers the leaf `compiled` and names no compiler for torch.compile"
        )
    for block in rt.model.blocks:
        # An nn.Module keeps what it was compiled to; asking for it twice would compile it anew.
        if block._compiled_call_impl is None:
            compile_it = functools.partial(block.compile, backend=rt.backend.compiler, dynamic=False)
            explained(rt.backend, f"torch.compile by {rt.backend.compiler!r}", compile_it)


def forward(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Tape]:
    """As the leaf `autograd`, its blocks compiled."""
    _compile(rt)
    return model.forward(rt, *operands, **how)


def grad(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Grads]:
    """As the fused leaf, its blocks compiled."""
    _compile(rt)
    return fused_leaf.grad(rt, *operands, **how)


def apply(rt: Runtime, *operands: Any, **how: Any) -> Tensor:
    """As `eager`, its blocks compiled; training and evaluation are two compilations."""
    _compile(rt)
    return model.apply(rt, *operands, **how)
