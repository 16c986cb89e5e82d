"""`habana_frameworks.torch.hpex.normalization`: clipping by the global norm, with a mark before and after."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vitcore_hpusim.habana.ops import ops
from vitcore_hpusim.habana.stepping import mark_if_lazy
from vitcore_hpusim.tensor import DEVICE


class FusedClipNorm:
    """hpex/normalization/FusedClipNorm.py: the bound is frozen when it is made; gradients are scaled in place."""

    def __init__(self, parameters: Iterable[torch.nn.parameter.Parameter], max_norm: float) -> None:
        self.max_norm_t = (torch.ones(1) * max_norm).to(DEVICE)

    def clip_norm(self, parameters: Iterable[torch.nn.parameter.Parameter] | Tensor) -> Tensor:
        """The norm before; a number of the host where nothing has a gradient."""
        mark_if_lazy()
        several = [parameters] if isinstance(parameters, Tensor) else parameters
        grads = [p.grad for p in several if p.grad is not None]
        if not grads:
            return torch.tensor(0.0)
        with torch.no_grad():
            total: Tensor = ops.clip_norm(grads, self.max_norm_t)
        mark_if_lazy()
        return total
