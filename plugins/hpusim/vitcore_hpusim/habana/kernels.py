"""`habana_frameworks.torch.hpex.kernels`: fused attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcore_hpusim.habana.ops import ops


class FusedSDPA(torch.autograd.Function):
    """hpex/kernels/FusedSDPA.py, without masks and dropout."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None, softmax_mode: str = "None", recompute_mode: bool | None = None,
        valid_seq_len: Tensor | None = None, seq_padding_type: str = "left", return_dropout_mask: bool = False,
        return_attn_probs: bool = False,
    ) -> Tensor:  # fmt: skip
        if (
            attn_mask is not None
            or dropout_p
            or is_causal
            or valid_seq_len is not None
            or return_dropout_mask
            or return_attn_probs
        ):
            raise NotImplementedError(
                "hpusim: FusedSDPA is simulated without masks, dropout, causality and their by-products"
            )
        if softmax_mode == "fast" and recompute_mode:
            raise RuntimeError("FusedSDPA: softmax_mode 'fast' with recompute needs is_causal")
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out, probabilities = ops.sdpa(q, k, v, scale)
        ctx.save_for_backward(q, k, v, probabilities)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return (*ops.sdpa_backward(grad, *ctx.saved_tensors, ctx.scale), *[None] * 10)
