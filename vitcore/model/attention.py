"""Attention as one named function, which a backend may claim with a kernel of its own."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vitcore.model.dropout import dropout as reference_dropout

# Shapes: B batch, H heads, N tokens, D width of one head.

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
