"""The compute leaf `compiled`: the model, or its repeated block alone, through torch.compile.

One block is compiled once and runs for all of them, which is what a processor is given: compiling a whole model takes minutes
there and gains nothing. A device that is bound by memory gains from what is fused across blocks. Which compiler, and how much
of the model, is the backend's to say (`Backend.compiler`, `Backend.compiles`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vitcore.backend import resolve
from vitcore.errors import VitcoreError
from vitcore.runtime import fused_leaf
from vitcore.runtime.opening import explained
from vitcore.runtime.reference import model

if TYPE_CHECKING:
    from vitcore.runtime.reference.grads import Grads
    from vitcore.runtime.reference.model import Tape
    from vitcore.runtime.runtime import Runtime


def _compile(rt: Runtime) -> None:
    """Compile what the backend says, once for each model."""
    if rt.backend.compiler is None:
        raise VitcoreError(
            f"backend {rt.backend.name!r} offers the leaf `compiled` and names no compiler for torch.compile"
        )
    for module in rt.model.blocks if rt.backend.compiles == "blocks" else [rt.model]:
        # An nn.Module keeps what it was compiled to; asking for it twice would compile it anew.
        if module._compiled_call_impl is None:
            compile_it = functools.partial(module.compile, backend=rt.backend.compiler, dynamic=False)
            explained(rt.backend, f"torch.compile by {rt.backend.compiler!r}", compile_it)


@contextmanager
def _compiled(rt: Runtime) -> Iterator[None]:
    """Inside, the model is compiled. What a compiler raises when it is first run becomes one sentence; what the model itself
    raises stays as it is."""
    _compile(rt)
    try:
        yield
    except Exception as e:
        from torch._dynamo.exc import TorchDynamoException  # imported by whoever compiles, and by nobody else

        if not isinstance(e, TorchDynamoException):
            raise
        known = resolve(rt.backend.failure)(e) if rt.backend.failure else None
        cause = getattr(e, "inner_exception", e)  # of the compiler, in what torch wraps around it
        said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        without = "run without --compile, or with --disable_kernel compiled"
        raise VitcoreError(
            f"backend {rt.backend.name!r}: {known or f'torch.compile by {rt.backend.compiler!r} failed: {said}; {without}'}"
        ) from e


def forward(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Tape]:
    """As the leaf `autograd`, compiled."""
    with _compiled(rt):
        return model.forward(rt, *operands, **how)


def grad(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Grads]:
    """As the fused leaf, compiled."""
    with _compiled(rt):
        return fused_leaf.grad(rt, *operands, **how)


def grad_at_once(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Grads]:
    """As that leaf with all gradients at once, compiled."""
    with _compiled(rt):
        return fused_leaf.grad_at_once(rt, *operands, **how)


def apply(rt: Runtime, *operands: Any, **how: Any) -> Tensor:
    """As `eager`, compiled; training and evaluation are two compilations."""
    with _compiled(rt):
        return model.apply(rt, *operands, **how)
