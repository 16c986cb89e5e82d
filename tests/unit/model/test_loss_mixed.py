"""The losses with two labels a row, and the loss of independent classes, against torch's own on whole target matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import Tensor

from vitcore.model.loss import LOSSES, Mixed, cross_entropy, sigmoid_cross_entropy

BATCH, CLASSES = 12, 7


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, Mixed]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(BATCH, CLASSES, generator=g, dtype=torch.float64) * 3
    labels, partner = (torch.randint(0, CLASSES, (BATCH,), generator=g) for _ in range(2))
    weight = (torch.rand(BATCH, generator=g) > 0.3).double()
    return logits.requires_grad_(), labels, weight, Mixed(partner, torch.rand(BATCH, generator=g, dtype=torch.float64))


def targets(labels: Tensor, mixed: Mixed | None, smoothing: float) -> Tensor:
    """The target matrix, as timm's mixup makes it: the smoothed one-hots of both labels, weighted."""
    own = F.one_hot(labels, CLASSES).double()
    if mixed is not None:
        share = mixed.own_B[:, None]
        own = share * own + (1 - share) * F.one_hot(mixed.partner_B, CLASSES)
    return own * (1 - smoothing) + smoothing / CLASSES


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_loss_and_gradients_are_those_of_a_whole_target_matrix(loss: str, two: bool, smoothing: float) -> None:
    logits, labels, weight, both = case(3)
    mixed = both if two else None
    have = LOSSES[loss](logits, labels, weight, smoothing, mixed)
    want_BK = targets(labels, mixed, smoothing)
    if loss == "softmax":
        rows = F.cross_entropy(logits, want_BK, reduction="none")
    else:
        rows = F.binary_cross_entropy_with_logits(logits, want_BK, reduction="none").sum(1)
    want = (rows * weight).sum() / weight.sum()
    assert torch.allclose(have, want, rtol=1e-12, atol=1e-12)
    one, other = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (have, want))
    assert torch.allclose(one, other, rtol=1e-10, atol=1e-13)


def test_the_sum_over_classes_is_timms_with_sum_classes() -> None:
    logits, labels, _, _ = case(5)
    timm = BinaryCrossEntropy(smoothing=0.1, sum_classes=True)(logits, labels)
    assert torch.allclose(sigmoid_cross_entropy(logits, labels, torch.ones(BATCH), 0.1), timm, rtol=1e-10)


def test_a_row_that_is_all_its_own_has_the_plain_loss() -> None:
    logits, labels, weight, both = case(7)
    alone = Mixed(both.partner_B, torch.ones(BATCH))
    assert torch.equal(cross_entropy(logits, labels, weight, 0.1, alone), cross_entropy(logits, labels, weight, 0.1))
