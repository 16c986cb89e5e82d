"""The loss against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from vitcore.model.loss import cross_entropy


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("batch", [1, 7, 32, 512])
def test_with_equal_weights_it_is_torchs_mean(batch: int, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = (3 * torch.randn(batch, 10, generator=generator)).requires_grad_()
    labels = torch.randint(0, 10, (batch,), generator=generator)
    ours = cross_entropy(logits, labels, torch.ones(batch), smoothing)
    theirs = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert ours.item() == pytest.approx(theirs.item(), rel=5e-7)
    (our_gradient,), (their_gradient,) = (torch.autograd.grad(loss, [logits]) for loss in (ours, theirs))
    assert torch.allclose(our_gradient, their_gradient, rtol=1e-6, atol=1e-9)
    if smoothing == 0.0:
        assert torch.equal(our_gradient, their_gradient)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_rows_of_weight_zero_are_as_if_absent(smoothing: float) -> None:
    logits = torch.randn(6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 0])
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    padded = cross_entropy(logits, labels, weight, smoothing)
    alone = cross_entropy(logits[:4], labels[:4], weight[:4], smoothing)
    assert float(padded) == pytest.approx(float(alone), rel=1e-12)


def test_fractional_weights_give_the_weighted_mean() -> None:
    logits, labels = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 1, 2])
    weight = torch.tensor([0.25, 0.0, 0.5])
    rows = F.cross_entropy(logits, labels, reduction="none")
    expected = (0.25 * rows[0] + 0.5 * rows[2]) / 0.75
    assert float(cross_entropy(logits, labels, weight)) == pytest.approx(float(expected), rel=1e-12)


def test_a_batch_of_nothing_but_padding_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.zeros(3, dtype=torch.int64), torch.zeros(3), 0.1)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(3, 4))


def test_narrow_logits_are_reduced_in_float32_and_float64_stays() -> None:
    logits, labels, weight = torch.randn(3, 4), torch.tensor([0, 1, 2]), torch.ones(3)
    assert cross_entropy(logits.bfloat16(), labels, weight).dtype == torch.float32
    assert cross_entropy(logits.double(), labels, weight).dtype == torch.float64
