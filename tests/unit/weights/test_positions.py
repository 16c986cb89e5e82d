"""Resampling of position embeddings, against the functions that the original and timm call for it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom
from timm.layers import resample_abs_pos_embed

from vitcore.weights.positions import resample

SIDES = st.tuples(st.integers(1, 16), st.integers(1, 16))


def embedding(grid: tuple[int, int]) -> torch.Tensor:
    return torch.randn(1, grid[0] * grid[1], 8, generator=torch.Generator().manual_seed(1))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(old=SIDES, new=SIDES)
def test_bilinear_is_the_zoom_of_scipy_that_the_original_calls(old: tuple[int, int], new: tuple[int, int]) -> None:
    held = embedding(old)
    factors = (new[0] / old[0], new[1] / old[1], 1)
    expected = zoom(held.reshape(*old, 8).double().numpy(), factors, order=1).reshape(1, new[0] * new[1], 8)
    found = resample(held, old, new, "bilinear")
    assert found.dtype == torch.float32 and np.abs(found.numpy() - expected).max() <= 1e-6


@settings(deadline=None, max_examples=50, derandomize=True)
@given(old=SIDES, new=SIDES)
def test_bicubic_is_timms(old: tuple[int, int], new: tuple[int, int]) -> None:
    held = embedding(old)
    expected = resample_abs_pos_embed(held, list(new), list(old), num_prefix_tokens=0)
    assert torch.equal(resample(held, old, new, "bicubic"), expected)


def test_the_same_grid_is_left_as_it_is_and_an_oblong_one_is_not_its_transpose() -> None:
    held = embedding((4, 4))
    assert resample(held, (4, 4), (4, 4), "bilinear") is held
    wide, high = resample(held, (4, 4), (2, 6), "bilinear"), resample(held, (4, 4), (6, 2), "bilinear")
    assert wide.shape == high.shape and not torch.equal(wide, high)
