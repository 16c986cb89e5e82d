"""Dropout: a pure function of (key, site, element), with the statistics of a coin."""

import numpy as np
import pytest
import torch

from vitcore.data.order import sample_keys
from vitcore.errors import VitcoreError
from vitcore.model.attention import attention
from vitcore.model.dropout import dropout, dropout_keys
from vitcore.model.hashing import exclusive_or, mix, shift_right
from vitcore.model.vit import build_model


def keys(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(sample_keys(seed, np.arange(count)))


def masks(keys_B: torch.Tensor, shape: tuple[int, ...], p: float, site: int) -> torch.Tensor:
    """1.0 where an element was dropped."""
    with dropout_keys(keys_B):
        return (dropout(torch.ones(len(keys_B), *shape), p, site) == 0).double()


def test_the_integer_operations_are_those_of_unsigned_32_bit_numbers() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(-(2**31), 2**31, (4096,), generator=generator).to(torch.int32) for _ in range(2))
    ux, uy = x.numpy().view(np.uint32), y.numpy().view(np.uint32)
    assert np.array_equal(exclusive_or(x, y).numpy().view(np.uint32), ux ^ uy)
    for bits in (15, 16, 24, 31):
        assert np.array_equal(shift_right(x, bits).numpy().view(np.uint32), ux >> np.uint32(bits))
    hashed = ux.copy()
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        hashed = (hashed ^ (hashed >> np.uint32(shift))) * np.uint32(factor)
    assert np.array_equal(mix(x).numpy().view(np.uint32), hashed)


def test_the_mask_of_a_sample_does_not_depend_on_the_rows_around_it() -> None:
    keys_B = keys(12)
    x = torch.randn(12, 5, 7)
    with dropout_keys(keys_B):
        whole = dropout(x, 0.4, 3)
    order = torch.tensor([7, 0, 3, 11])
    for rows in (order, torch.tensor([3]), torch.arange(4, 12)):
        with dropout_keys(keys_B[rows]):
            assert torch.equal(dropout(x[rows], 0.4, 3), whole[rows])


def test_the_mask_does_not_depend_on_the_shape_or_dtype_of_a_sample() -> None:
    flat, square = masks(keys(3), (36,), 0.3, 1), masks(keys(3), (6, 6), 0.3, 1)
    assert torch.equal(flat, square.flatten(1))
    with dropout_keys(keys(3)):
        assert torch.equal((dropout(torch.ones(3, 36, dtype=torch.bfloat16), 0.3, 1) == 0).double(), flat)


def test_the_bits_are_fixed_for_all_time() -> None:
    """A golden of integers: a checkpoint resumed by a later version must draw the same masks."""
    keys_B = torch.tensor([1, -7, 123456789], dtype=torch.int32)
    packed = np.packbits(masks(keys_B, (32,), 0.5, 2).bool().numpy(), axis=1)
    assert packed.tolist() == GOLDEN


GOLDEN = [[31, 211, 109, 125], [116, 170, 167, 217], [199, 182, 26, 160]]


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_the_rate_is_p_and_nothing_correlates(p: float) -> None:
    samples, elements = 64, 8192
    first, second = (masks(keys(samples), (elements,), p, site) for site in (0, 1))
    spread = (p * (1 - p)) ** 0.5
    z = (first - p) / spread
    other = (second - p) / spread
    # Each is a sum of independent terms of variance 1, scaled to variance 1: five standard deviations are generous.
    assert abs(float(z.sum())) / (samples * elements) ** 0.5 < 5
    assert float((z.sum(1) / elements**0.5).abs().max()) < 5.5
    for product in (z * other, z[::2] * z[1::2], *(z[:, lag:] * z[:, :-lag] for lag in (1, 2, 16, 48, 192, 4096))):
        assert abs(float(product.sum())) / product.numel() ** 0.5 < 5


def test_what_is_kept_is_scaled_and_the_gradient_follows() -> None:
    x = torch.randn(4, 50, requires_grad=True)
    with dropout_keys(keys(4)):
        y = dropout(x, 0.25, 0)
    dropped = y == 0
    assert torch.equal(y[~dropped], x[~dropped] * (1 / 0.75))
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(dropped, 0.0, torch.tensor(1 / 0.75)))


def test_rate_zero_returns_the_input_itself() -> None:
    x = torch.randn(2, 3)
    assert dropout(x, 0.0, 0) is x


def test_training_without_keys_is_refused_and_evaluation_needs_none() -> None:
    model = build_model("ViT-digits", 8, 10, dropout=0.1)
    images = torch.randn(2, 1, 8, 8)
    with pytest.raises(VitcoreError, match=r"no keys for the samples.*with dropout_keys"):
        model(images)
    model.eval()
    assert model(images).shape == (2, 10)


def test_contexts_nest_and_close() -> None:
    x = torch.ones(2, 64)
    with dropout_keys(keys(2)):
        outer = dropout(x, 0.5, 0)
        with dropout_keys(keys(2, seed=1)):
            assert not torch.equal(dropout(x, 0.5, 0), outer)
        assert torch.equal(dropout(x, 0.5, 0), outer)
    with pytest.raises(VitcoreError):
        dropout(x, 0.5, 0)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), "got torch.int64 of shape"),
        (torch.zeros(3, 1, dtype=torch.int32), r"shape \(3, 1\)"),
        (torch.zeros(3, dtype=torch.int32), "3 keys for a batch of 2 samples"),
    ],
)
def test_keys_of_another_kind_are_refused(bad: torch.Tensor, words: str) -> None:
    with pytest.raises(VitcoreError, match=words), dropout_keys(bad):
        dropout(torch.ones(2, 4), 0.5, 0)


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0])
def test_a_rate_outside_the_range_is_refused(p: float) -> None:
    with pytest.raises(VitcoreError, match="is not a rate"), dropout_keys(keys(2)):
        dropout(torch.ones(2, 4), p, 0)


def test_the_model_drops_at_every_place_with_a_site_of_its_own() -> None:
    sites: list[tuple[float, int]] = []

    def recorded(x: torch.Tensor, p: float, site: int) -> torch.Tensor:
        sites.append((p, site))
        return x

    model = build_model("ViT-digits", 8, 10, depth=2, dropout=0.1, attention_dropout=0.2)
    model.functions = type(model.functions)(dropout=recorded)
    model(torch.randn(2, 1, 8, 8))
    assert sites == [(0.1, 8), (0.2, 0), (0.1, 1), (0.1, 2), (0.1, 3), (0.2, 4), (0.1, 5), (0.1, 6), (0.1, 7)]


def test_the_model_with_dropout_treats_each_sample_alone() -> None:
    model = build_model("ViT-digits", 8, 10, dropout=0.1, attention_dropout=0.1).double()
    torch.nn.init.normal_(model.head.weight)
    images, keys_B = torch.randn(6, 1, 8, 8, dtype=torch.float64), keys(6)
    with dropout_keys(keys_B):
        whole = model(images)
    with dropout_keys(keys_B[2:4]):
        part = model(images[2:4])
    assert torch.allclose(part, whole[2:4], rtol=0, atol=1e-10)


def test_attention_drops_probabilities() -> None:
    q, k, v = (torch.randn(2, 3, 5, 4) for _ in range(3))
    with dropout_keys(keys(2)):
        result = attention(q, k, v, p=0.5, site=9)
        probabilities = dropout((q * 0.5 @ k.transpose(-2, -1)).softmax(-1), 0.5, 9)
    assert torch.allclose(result, probabilities @ v, atol=1e-5)
