"""The leaf `fp8`: dense layers of the blocks multiply in 8 bits, the gradients of their weights in bf16.

The recipe that torchao calls `rowwise_with_gw_hp`: forward and gradient of the input by `torch._scaled_mm` in e4m3, each row
of the one factor and each column of the other by a scale of its own, made anew each time from the largest number in it.
Parameters, activations between products, and evaluation stay what they are in bf16. Of the last block, queries, keys and values
are made by slices of one layer and stay bf16 too. Always compiled: by itself each cast is five passes over memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vitcore.runtime import compiled

if TYPE_CHECKING:
    from vitcore.runtime.reference.grads import Grads
    from vitcore.runtime.runtime import Runtime

# Shapes: M rows, K what is summed over, O what comes out.

NUMBER = torch.float8_e4m3fn
LARGEST = torch.finfo(NUMBER).max
# Both sides of a factor are multiples of this, or `torch._scaled_mm` refuses it.
MULTIPLE = 16


def by_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix in 8 bits, its largest number of each row at the end of their range, and what each row is to be multiplied
    with, (M, 1) float32. A row with a number that is not finite has none that is."""
    scale_M1 = x_MK.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (x_MK.float() / scale_M1).clamp(-LARGEST, LARGEST).to(NUMBER), scale_M1


def product(a_MK: Tensor, b_OK: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """a times b transposed, plus the bias, in the dtype of `a`: (M, O)."""
    (a8_MK, a_M1), (b8_OK, b_O1) = by_rows(a_MK), by_rows(b_OK)
    out_MO: Tensor = torch._scaled_mm(a8_MK, b8_OK.t(), a_M1, b_O1.t(), bias=bias_O, out_dtype=a_MK.dtype)
    return out_MO


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_OK: Tensor, bias_O: Tensor) -> Tensor:
        ctx.save_for_backward(x_MK, weight_OK)
        return product(x_MK, weight_OK, bias_O)

    @staticmethod
    def backward(ctx: Any, *made: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad_MO,), (x_MK, weight_OK) = made, ctx.saved_tensors
        grad_MO = grad_MO.contiguous()
        return product(grad_MO, weight_OK.t().contiguous()), grad_MO.t() @ x_MK, grad_MO.sum(0)


class Dense(nn.Linear):
    """A dense layer that multiplies in 8 bits while it is trained. Of the same parameters; an `nn.Linear` becomes one in
    place."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x_MK = input.reshape(-1, input.shape[-1])
        out_MO: Tensor = _Dense.apply(x_MK, self.weight, self.bias)
        return out_MO.view(*input.shape[:-1], self.out_features)


def convert(model: nn.Module) -> int:
    """Make the dense layers of the model's blocks 8 bits wide, once; how many of them are."""
    count = 0
    for block in model.blocks:  # type: ignore[union-attr]
        for module in block.modules():
            if type(module) is nn.Linear and module.in_features % MULTIPLE == module.out_features % MULTIPLE == 0:
                module.__class__ = Dense
            count += isinstance(module, Dense)
    return count


def grad_at_once(rt: Runtime, *operands: Any, **how: Any) -> tuple[Tensor, Grads]:
    """As the leaf `compiled`, in 8 bits."""
    convert(rt.model)
    return compiled.grad_at_once(rt, *operands, **how)
