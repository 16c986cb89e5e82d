"""The policy `bf16-casts`: which functions compute narrow and which wide, carried out by casts in the graph.

It needs no table of the device, as `torch.autocast` does: every device that records a cast computes it, and the same text
means the same on all. Parameters, gradients and everything that is not named here stay as they are; torch promotes where a
narrow and a wide tensor meet.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

NARROW = frozenset({
    F.linear, F.conv2d, F.scaled_dot_product_attention, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm,
    Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__,
})  # fmt: skip
"""Products: nearly all of the time, and sums of many terms that a device accumulates in float32 inside."""

WIDE = frozenset({
    F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm, F.softmax, torch.softmax, Tensor.softmax, F.log_softmax,
    torch.log_softmax, Tensor.log_softmax, torch.sum, Tensor.sum, torch.mean, Tensor.mean, torch.exp, Tensor.exp, torch.sqrt,
    Tensor.sqrt, torch.pow, Tensor.pow,
})  # fmt: skip
"""Norms, reductions and what makes large numbers of small differences."""


class ExplicitCasts(TorchFunctionMode):
    """Inside, operands of `NARROW` functions are cast to `dtype`, and narrow operands of `WIDE` ones to float32."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in NARROW:
            args, kwargs = self._cast(args, kwargs, torch.float32, self.dtype)
        elif func in WIDE:
            args, kwargs = self._cast(args, kwargs, self.dtype, torch.float32)
        return func(*args, **kwargs)

    def _cast(self, args: Any, kwargs: Any, old: torch.dtype, new: torch.dtype) -> tuple[Any, Any]:
        def cast(value: Any) -> Any:
            return value.to(new) if isinstance(value, Tensor) and value.dtype == old else value

        return tuple(map(cast, args)), {k: cast(v) for k, v in kwargs.items()}
