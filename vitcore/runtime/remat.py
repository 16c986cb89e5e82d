"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): a block keeps its input alone for the backward.

torch's own function does it, which stops the second forward where the last tensor is made that the backward needs. Dropout
is a pure function of the samples' keys, so no state of a generator has to be kept and set.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def checkpointed(again: Callable[[], AbstractContextManager]) -> Callable[..., Tensor]:
    """A way to run a block: `run(block, x_BND, ...)`. The second forward is inside `again()`, and finds the context variables
    of the first, as the samples' keys are, whichever thread runs it."""

    def run(block: Callable[..., Tensor], x_BND: Tensor, *rest: Any) -> Tensor:
        found = copy_context()

        def body(x_BND: Tensor) -> Tensor:
            return found.run(block, x_BND, *rest)

        # Of a device without a module of torch's, which has no state and no table of autocast to be set either, torch is
        # not told.
        known = x_BND.is_meta or hasattr(torch, x_BND.device.type)
        made: Tensor = checkpoint(
            body if known else lambda: body(x_BND), *([x_BND] if known else []),
            use_reentrant=False, preserve_rng_state=False, context_fn=lambda: (nullcontext(), again()),
        )  # fmt: skip
        return made

    return run
