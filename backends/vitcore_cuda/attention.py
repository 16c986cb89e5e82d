"""Attention by torch's fused kernels for NVIDIA GPUs, each by its own name, of which the fastest is taken (`measure`).

The operators are called and not `scaled_dot_product_attention`, which would choose by itself: what runs is what was printed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.api import Shape, VitcoreError

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime

# Shapes: B batch, H heads, N tokens, Q queries, D width of one head; 3 stands for q, k and v.

# Of q, k, v and the factor of the scores.
Fused = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# Widths of a head that are no multiple of this are refused by the operators.
_MULTIPLE = 8


def _cudnn(q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor, scale: float) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q_BHQD, k_BHND, v_BHND, None, True, scale=scale)[0]
    return out


def _flash(q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor, scale: float) -> Tensor:
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q_BHQD, k_BHND, v_BHND, scale=scale)[0]
    return out


def _efficient(q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor, scale: float) -> Tensor:
    operator = torch.ops.aten._scaled_dot_product_efficient_attention
    out: Tensor = operator(q_BHQD, k_BHND, v_BHND, None, True, scale=scale)[0]
    return out


_OPERATORS: dict[str, Fused] = {"cudnn": _cudnn, "flash": _flash, "efficient": _efficient}


def attend(fused: Fused, q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor) -> Tensor:
    """(B, H, Q, D). Where the operators refuse the width of a head, zeros make it wider, which change no score and no sum."""
    width = q_BHQD.shape[-1]
    more = -width % _MULTIPLE
    if not more:
        return fused(q_BHQD, k_BHND, v_BHND, width**-0.5)
    q_BHQD, k_BHND, v_BHND = (F.pad(x, (0, more)) for x in (q_BHQD, k_BHND, v_BHND))
    return fused(q_BHQD, k_BHND, v_BHND, width**-0.5)[..., :width]


def of_packed(fused: Fused, qkv_BN3HD: Tensor) -> Tensor:
    """Attention of what the projection made; (B, N, H * D). Apart along the third dimension, so that the backward puts three
    gradients together in one copy, in the projection's own order."""
    q_BHND, k_BHND, v_BHND = (x_BNHD.transpose(1, 2) for x_BNHD in qkv_BN3HD.unbind(2))
    return attend(fused, q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(2)


def _kernel(name: str) -> Callable[..., Tensor]:
    def kernel(
        rt: Runtime, qkv_BN3HD: Tensor, *, attention: Any, p: float = 0.0, site: int = 0, dropout: Any = None
    ) -> Tensor:
        _refuse_dropout(name, p)
        return of_packed(_OPERATORS[name], qkv_BN3HD)

    return kernel


cudnn, flash, efficient = (_kernel(name) for name in _OPERATORS)


def fused(
    rt: Runtime, q_BHQD: Tensor, k_BHND: Tensor, v_BHND: Tensor, *, p: float = 0.0, site: int = 0, dropout: Any = None
) -> Tensor:
    """Attention of few queries, those that are read, to all tokens: (B, H, Q, D)."""
    _refuse_dropout("fused", p)
    return attend(_OPERATORS["efficient"], q_BHQD, k_BHND, v_BHND)


def _refuse_dropout(name: str, p: float) -> None:
    if p > 0.0:
        raise VitcoreError(
            f"{name}: attention dropout of {p} would be drawn from the device's own generator, so a run would depend on the "
            f"device; use the reference attention with --disable_kernel cudnn flash efficient fused, or a model without "
            "attention dropout"
        )


def measure(shape: Shape) -> dict[str, float]:
    """Seconds of one forward and backward of each operator, the median of some, by the device's clock; infinite for one that
    this card, or this width of a head, is not of."""
    if not shape.narrow:
        return {}
    size = (shape.rows, shape.tokens, 3, shape.heads, shape.head_width)
    qkv_BN3HD = torch.randn(size, dtype=torch.bfloat16, device="cuda").requires_grad_()
    found = {}
    for name, operator in _OPERATORS.items():
        try:
            found[name] = _seconds(operator, qkv_BN3HD)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            torch.cuda.synchronize()
            found[name] = math.inf
    return found


def _seconds(operator: Fused, qkv_BN3HD: Tensor, rounds: int = 10) -> float:
    def once() -> None:
        out = of_packed(operator, qkv_BN3HD)
        torch.autograd.grad(out, qkv_BN3HD, out.detach())

    times = []
    for _ in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        once()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])
