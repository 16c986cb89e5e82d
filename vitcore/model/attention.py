"""Attention as two named functions, which a backend may claim with kernels of its own: of q, k and v, and of what the
projection makes."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vitcore.model.dropout import dropout as reference_dropout

# Shapes: B batch, H heads, N tokens, D width of one head; 3 stands for q, k and v.

DropoutFunction = Callable[[Tensor, float, int], Tensor]
"""(x, p, site) -> x with dropout, as `vitcore.model.dropout.dropout`."""


class AttentionFunction(Protocol):
    """What stands in for `attention`: the same arguments, the same result."""

    def __call__(
        self,
        q_BHND: Tensor,
        k_BHND: Tensor,
        v_BHND: Tensor,
        *,
        p: float = ...,
        site: int = ...,
        dropout: DropoutFunction = ...,
    ) -> Tensor: ...


def attention(
    q_BHND: Tensor,
    k_BHND: Tensor,
    v_BHND: Tensor,
    *,
    p: float = 0.0,
    site: int = 0,
    dropout: DropoutFunction = reference_dropout,
) -> Tensor:
    """Scaled dot-product attention over all tokens; returns (B, H, N, D) in the dtype of `v_BHND`.

    `p` is the dropout rate of the probabilities, drawn by `dropout(probabilities, p, site)`.

    q is scaled before the product, as in the original implementation, so that the scores do not grow in a narrow
    dtype; the softmax runs in float32 at least, whatever the dtype of the scores.
    """
    q_BHND = q_BHND * q_BHND.shape[-1] ** -0.5
    scores_BHNN = torch.matmul(q_BHND, k_BHND.transpose(-2, -1))
    # The dtype is named and not left to autocast, whose tables differ: some send softmax to a narrow dtype.
    probabilities_BHNN = torch.softmax(scores_BHNN, -1, dtype=torch.promote_types(scores_BHNN.dtype, torch.float32))
    if p > 0.0:
        probabilities_BHNN = dropout(probabilities_BHNN, p, site)
    return torch.matmul(probabilities_BHNN.to(v_BHND.dtype), v_BHND)


class SelfAttentionFunction(Protocol):
    """What stands in for `self_attention`: the same arguments, the same result."""

    def __call__(
        self,
        qkv_BN3HD: Tensor,
        *,
        attention: AttentionFunction = ...,
        p: float = ...,
        site: int = ...,
        dropout: DropoutFunction = ...,
    ) -> Tensor: ...


def self_attention(
    qkv_BN3HD: Tensor,
    *,
    attention: AttentionFunction = attention,
    p: float = 0.0,
    site: int = 0,
    dropout: DropoutFunction = reference_dropout,
) -> Tensor:
    """`attention` of q, k and v as one projection made them, side by side; returns (B, N, H * D), heads side by side."""
    qkv_3BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4)
    # By index: what unbind, chunk and split return is not of the device on every recording device.
    attended_BHND = attention(qkv_3BHND[0], qkv_3BHND[1], qkv_3BHND[2], p=p, site=site, dropout=dropout)
    return attended_BHND.transpose(1, 2).flatten(2)
