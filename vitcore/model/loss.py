"""The training losses, each with a weight per row, and with two labels a row where pictures were mixed."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Shapes: B batch, K classes.


class Mixed(NamedTuple):
    """The second label of each row of a batch of mixed pictures, int64 (B,), and the share of the first, float (B,)."""

    partner_B: Tensor
    own_B: Tensor


def cross_entropy(
    logits_BK: Tensor, labels_B: Tensor, weight_B: Tensor, label_smoothing: float = 0.0, mixed: Mixed | None = None
) -> Tensor:
    """The weighted mean over rows of the cross-entropy, a scalar in float32 at least.

    `labels_B` is int64 in [0, K), also where the weight is 0. A weight of 0 is padding or a picture that was skipped;
    a batch of nothing else gives 0, with zero gradients. With `label_smoothing` s the target is 1 - s on the label
    plus s / K everywhere, as in `torch.nn.functional.cross_entropy`; with `mixed` the 1 - s is shared by two labels.
    """
    dtype = torch.promote_types(logits_BK.dtype, torch.float32)
    log_p_BK = torch.log_softmax(logits_BK, dim=-1, dtype=dtype)
    loss_B = -_at_labels(log_p_BK, labels_B, mixed)
    if label_smoothing > 0.0:
        # On rows and not on their mean: a Python number beside a 0-d tensor fails on some recording devices.
        loss_B = loss_B * (1.0 - label_smoothing) - log_p_BK.mean(dim=-1) * label_smoothing
    return _mean(loss_B, weight_B)


def sigmoid_cross_entropy(
    logits_BK: Tensor, labels_B: Tensor, weight_B: Tensor, label_smoothing: float = 0.0, mixed: Mixed | None = None
) -> Tensor:
    """As `cross_entropy`, of K independent yes or no questions a row: the binary cross-entropies, summed over classes.

    The loss of "Are we done with ImageNet?" (arXiv 2006.07159) and of DeiT III (arXiv 2204.07118), whose code takes the
    mean over classes. With targets t it is the sum over classes of softplus(z) - t z.
    """
    z_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    hit_B = _at_labels(z_BK, labels_B, mixed)
    if label_smoothing > 0.0:
        hit_B = hit_B * (1.0 - label_smoothing) + z_BK.mean(dim=-1) * label_smoothing
    return _mean(F.softplus(z_BK).sum(dim=-1) - hit_B, weight_B)


LOSSES = {"softmax": cross_entropy, "sigmoid": sigmoid_cross_entropy}


def _at_labels(values_BK: Tensor, labels_B: Tensor, mixed: Mixed | None) -> Tensor:
    """Each row's value at its label, or at its two labels by their shares."""
    own_B = values_BK.gather(1, labels_B[:, None])[:, 0]
    if mixed is None:
        return own_B
    share_B = mixed.own_B.to(values_BK.dtype)
    return own_B * share_B + values_BK.gather(1, mixed.partner_B[:, None])[:, 0] * (1 - share_B)


def _mean(loss_B: Tensor, weight_B: Tensor) -> Tensor:
    weight_B = weight_B.to(loss_B.dtype)
    total = weight_B.sum()
    # 0 / 1 and not 0 / 0 when every weight is 0. Not a clamp: its Python bound is one more number beside a 0-d tensor.
    return (loss_B * weight_B).sum() / (total + (total == 0).to(loss_B.dtype))
