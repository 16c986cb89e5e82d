"""Self-attention on the processor: three ways of one formula, of which the fastest is taken (`measure`).

torch's fused kernel computes in float32 inside but is slow in bf16, above all backward; two batched products are faster where
the processor multiplies bf16 natively, and round the scores. All take what the projection made, side by side, and give
back its gradient as one tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.api import Shape

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime

# In float32 and bf16 alike, what the processor's products are cut into (oneDNN, AVX-512).
_EVEN = 16

_MEASURED = 2048

# Shapes: B batch, H heads, N tokens, D width of one head; S = B * H; 3 stands for q, k and v.


class _Products(torch.autograd.Function):
    """softmax(q k^T) v as two batched products, in place wherever nothing is lost: of the scores, only probabilities are kept.

    With `multiple` above 1 there are tokens of zeros behind the others, up to the next multiple, which nobody attends to:
    products of uneven sizes can take longer than larger even ones.
    """

    @staticmethod
    def forward(ctx: Any, qkv_BN3HD: Tensor, multiple: int) -> Tensor:
        batch, tokens, _, heads, width = qkv_BN3HD.shape
        qkv_3SND = _heads_first(qkv_BN3HD.permute(2, 0, 3, 1, 4), multiple)
        q_SND, k_SND, v_SND = qkv_3SND[0], qkv_3SND[1], qkv_3SND[2]
        q_SND.mul_(width**-0.5)
        scores_SNN = torch.bmm(q_SND, k_SND.transpose(1, 2))
        if scores_SNN.shape[-1] > tokens:
            scores_SNN[:, :, tokens:] = -torch.inf
        probabilities_SNN = torch.softmax(scores_SNN, -1)
        ctx.save_for_backward(qkv_3SND, probabilities_SNN)
        ctx.sizes = batch, heads, tokens, multiple
        return _tokens_first(torch.bmm(probabilities_SNN, v_SND), batch, tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (batch, heads, tokens, multiple), (qkv_3SND, probabilities_SNN) = ctx.sizes, ctx.saved_tensors
        width = qkv_3SND.shape[-1]
        out_SND = _heads_first(gradients[0].view(1, batch, tokens, heads, width).transpose(2, 3), multiple)[0]
        made_3SND = torch.empty_like(qkv_3SND)
        torch.bmm(probabilities_SNN.transpose(1, 2), out_SND, out=made_3SND[2])
        scores_SNN = torch.bmm(out_SND, qkv_3SND[2].transpose(1, 2))
        scores_SNN = torch.ops.aten._softmax_backward_data(scores_SNN, probabilities_SNN, -1, scores_SNN.dtype)
        torch.bmm(scores_SNN, qkv_3SND[1], out=made_3SND[0])
        made_3SND[0].mul_(width**-0.5)
        torch.bmm(scores_SNN.transpose(1, 2), qkv_3SND[0], out=made_3SND[1])
        made_3BHND = made_3SND.view(3, batch, heads, -1, width)[:, :, :, :tokens]
        return made_3BHND.permute(1, 3, 0, 2, 4).contiguous(), None


class _FusedForward(torch.autograd.Function):
    """torch's fused kernel forward, which keeps a number a row and no probabilities; those are made again for the backward,
    from scores of the dtype of q."""

    @staticmethod
    def forward(ctx: Any, qkv_BN3HD: Tensor) -> Tensor:
        qkv_3BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).contiguous()
        out_BHND, logsumexp_BHN = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            qkv_3BHND[0], qkv_3BHND[1], qkv_3BHND[2]
        )
        ctx.save_for_backward(qkv_3BHND, out_BHND, logsumexp_BHN)
        return out_BHND.transpose(1, 2).flatten(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        qkv_3BHND, out_BHND, logsumexp_BHN = ctx.saved_tensors
        _, batch, heads, tokens, width = qkv_3BHND.shape
        many = (batch * heads, tokens)
        q_SND, k_SND, v_SND = (qkv_3BHND[i].view(*many, width) for i in range(3))
        made_SND = gradients[0].view(batch, tokens, heads, width).transpose(1, 2).reshape(*many, width)
        scale = width**-0.5
        scores_SNN = torch.bmm(q_SND * scale, k_SND.transpose(1, 2))
        # Of float32 where the scores are narrow, so that what is subtracted does not round them once more.
        probabilities_SNN = (scores_SNN - logsumexp_BHN.reshape(*many, 1)).exp_().to(q_SND.dtype)
        back_3SND = torch.empty_like(qkv_3BHND).view(3, *many, width)
        torch.bmm(probabilities_SNN.transpose(1, 2), made_SND, out=back_3SND[2])
        inner_SN1 = (made_SND * out_BHND.reshape(*many, width)).sum(-1, keepdim=True)
        scores_SNN = torch.bmm(made_SND, v_SND.transpose(1, 2)).sub_(inner_SN1).mul_(probabilities_SNN)
        torch.bmm(scores_SNN, k_SND, out=back_3SND[0])
        torch.bmm(scores_SNN.transpose(1, 2), q_SND, out=back_3SND[1])
        back_3SND[:2].mul_(scale)
        return back_3SND.view(3, batch, heads, tokens, width).permute(1, 3, 0, 2, 4).contiguous()


class _Nothing(torch.autograd.Function):
    """One number whose gradient is what was given, at no cost. A gradient that is handed to `torch.autograd.grad` makes torch
    import sympy, whose 400 modules a first step would wait for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        made: Tensor = ctx.saved_tensors[0]
        return made


def _heads_first(x_CBHND: Tensor, multiple: int) -> Tensor:
    """(C, B, H, N, D) of any strides to a copy (C, B * H, M, D), where M is the next multiple and the tokens from N on are 0."""
    some, batch, heads, tokens, width = x_CBHND.shape
    padded = -(-tokens // multiple) * multiple
    out_CBHMD = x_CBHND.new_empty(some, batch, heads, padded, width)
    out_CBHMD[:, :, :, :tokens].copy_(x_CBHND)
    if padded > tokens:
        out_CBHMD[:, :, :, tokens:].zero_()
    return out_CBHMD.view(some, batch * heads, padded, width)


def _tokens_first(x_SND: Tensor, batch: int, tokens: int) -> Tensor:
    """(B * H, M, D) to (B, N, H * D), of the first N tokens."""
    x_BHND = x_SND.view(batch, -1, *x_SND.shape[-2:])[:, :, :tokens]
    return x_BHND.transpose(1, 2).flatten(2)


def _fused(qkv_BN3HD: Tensor) -> Tensor:
    # Apart along the third dimension and not by an index each: the backward puts three gradients together in one copy, in the
    # projection's own order, and adds no zeros.
    q_BHND, k_BHND, v_BHND = (x_BNHD.transpose(1, 2) for x_BNHD in qkv_BN3HD.unbind(2))
    return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(2)


def _fused_wide(qkv_BN3HD: Tensor) -> Tensor:
    return _fused(qkv_BN3HD.float()).to(qkv_BN3HD.dtype)


_WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "products": lambda qkv: _Products.apply(qkv, 1),
    "products_padded": lambda qkv: _Products.apply(qkv, _EVEN),
    "fused_forward": _FusedForward.apply,
    "sdpa": _fused,
    "sdpa_fp32": _fused_wide,
}


def _kernel(name: str) -> Callable[..., Tensor]:
    way = _WAYS[name]

    def kernel(
        rt: Runtime, qkv_BN3HD: Tensor, *, attention: Any, p: float = 0.0, site: int = 0, dropout: Any = None
    ) -> Tensor:
        if p > 0.0:  # dropout of probabilities: the reference draws it by counters
            from vitcore.model.attention import self_attention

            return self_attention(qkv_BN3HD, attention=attention, p=p, site=site, dropout=dropout)
        return way(qkv_BN3HD)

    return kernel


products, products_padded, fused_forward, sdpa, sdpa_fp32 = (
    _kernel(name) for name in ("products", "products_padded", "fused_forward", "sdpa", "sdpa_fp32")
)


def measure(shape: Shape) -> dict[str, float]:
    """Seconds of one forward and backward of each way, the best of a few in turn, on random numbers of this shape, but of no
    more pictures than make `_MEASURED` tokens: each is computed by itself."""
    dtype = torch.bfloat16 if shape.narrow else torch.float32
    generator = torch.Generator().manual_seed(0)
    rows = min(shape.rows, max(1, _MEASURED // shape.tokens))
    qkv = torch.randn(rows, shape.tokens, 3, shape.heads, shape.head_width, generator=generator).to(dtype)
    qkv.requires_grad_()
    # What is no kernel for wide weights is not to be the fastest for them.
    names = [name for name in _WAYS if shape.narrow or name not in ("products", "sdpa_fp32")]
    best = dict.fromkeys(names, float("inf"))
    for _ in range(4):
        for name in names:
            start = time.perf_counter()
            torch.autograd.grad(_Nothing.apply(_WAYS[name](qkv)), qkv)
            best[name] = min(best[name], time.perf_counter() - start)
    return best
