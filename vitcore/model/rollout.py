"""Attention rollout: which patches the model's output hangs on (Abnar and Zuidema, arXiv 2005.00928)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitcore.model.functions import Functions
from vitcore.model.vit import VisionTransformer

# Shapes: B batch, H heads, N tokens (class token, if any, and patches), G rows and J columns of patches, D width of a
# head.


@torch.no_grad()
def attention_rollout(model: VisionTransformer, images_BCYX: Tensor) -> Tensor:
    """The share of each patch, (B, G, J): of the class token's row, or of the mean of all rows without one.

    In each block the heads are averaged and the residual branch counts as much as the attention, (A + 1) / 2; the
    product over blocks has rows that sum to 1.
    """
    collected: list[Tensor] = []
    before = model.functions

    def recording(q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, **rest: Any) -> Tensor:
        scores_BHNN = (q_BHND * q_BHND.shape[-1] ** -0.5) @ k_BHND.transpose(-2, -1)
        collected.append(scores_BHNN.float().softmax(-1).mean(1))
        return before.attention(q_BHND, k_BHND, v_BHND, **rest)

    model.functions = Functions(attention=recording, dropout=before.dropout)
    try:
        model(images_BCYX)
    finally:
        model.functions = before
    rollout_BNN = torch.eye(collected[0].shape[-1], device=collected[0].device)[None]
    for mean_BNN in collected:
        rollout_BNN = 0.5 * (mean_BNN + torch.eye(mean_BNN.shape[-1], device=mean_BNN.device)) @ rollout_BNN
    shares_BN = rollout_BNN.mean(1) if model.cls_token is None else rollout_BNN[:, 0, 1:]
    return shares_BN.reshape(-1, *model.grid)
