"""The training loss: cross-entropy with a weight per row."""

import torch
from torch import Tensor

# Shapes: B batch, K classes.


def cross_entropy(logits_BK: Tensor, labels_B: Tensor, weight_B: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The weighted mean over rows of the cross-entropy, a scalar in float32 at least.

    `labels_B` is int64 in [0, K), also where the weight is 0. A weight of 0 is padding or a picture that was skipped;
    a batch of nothing else gives 0, with zero gradients. With `label_smoothing` s the target is 1 - s on the label
    plus s / K everywhere, as in `torch.nn.functional.cross_entropy`.
    """
    dtype = torch.promote_types(logits_BK.dtype, torch.float32)
    log_p_BK = torch.log_softmax(logits_BK, dim=-1, dtype=dtype)
    loss_B = -log_p_BK.gather(1, labels_B[:, None])[:, 0]
    if label_smoothing > 0.0:
        # On rows and not on their mean: a Python number beside a 0-d tensor fails on some recording devices.
        loss_B = loss_B * (1.0 - label_smoothing) - log_p_BK.mean(dim=-1) * label_smoothing
    weight_B = weight_B.to(dtype)
    total = weight_B.sum()
    # 0 / 1 and not 0 / 0 when every weight is 0. Not a clamp: its Python bound is one more number beside a 0-d tensor.
    return (loss_B * weight_B).sum() / (total + (total == 0).to(dtype))
