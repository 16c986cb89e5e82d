"""The sample order: every property holds for any seed, size and world, and NumPy alone is needed."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.data.order import draw_uniform, epoch_permutation, sample_indices, sample_keys, usable_length
from vitcore.errors import VitcoreError

SEEDS = st.integers(0, 2**64 - 1)


@given(SEEDS, st.integers(0, 10**6), st.integers(1, 300))
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert sorted(epoch_permutation(seed, epoch, n).tolist()) == list(range(n))


@given(SEEDS, st.integers(1, 200), st.integers(1, 32), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_each_epoch_visits_each_index_at_most_once_and_drops_the_ragged_end(
    seed: int, n: int, batch: int, epoch: int
) -> None:
    n = max(n, batch)
    usable = usable_length(n, batch)
    assert usable % batch == 0 and n - batch < usable <= n
    indices = sample_indices(seed, np.arange(epoch * usable, (epoch + 1) * usable), n, usable)
    assert len(set(indices.tolist())) == usable
    assert indices.min() >= 0 and indices.max() < n


@given(SEEDS, st.lists(st.integers(0, 2000), max_size=40), st.integers(5, 60))
@settings(max_examples=50, deadline=None)
def test_an_index_depends_on_its_position_alone(seed: int, positions: list[int], n: int) -> None:
    """So any cut, any resume and any split over ranks gives the same sequence."""
    usable = usable_length(n, 5)
    together = sample_indices(seed, np.array(positions, dtype=np.int64), n, usable)
    alone = [int(sample_indices(seed, np.array([p]), n, usable)[0]) for p in positions]
    assert together.tolist() == alone


def test_epochs_and_seeds_differ() -> None:
    first = epoch_permutation(0, 0, 100)
    assert not np.array_equal(first, epoch_permutation(0, 1, 100))
    assert not np.array_equal(first, epoch_permutation(1, 0, 100))
    assert not np.array_equal(epoch_permutation(0, 1, 100), epoch_permutation(1, 0, 100))


def test_the_values_are_fixed_for_all_time() -> None:
    """Goldens of integers, and of floats that are integers over 2**53: a later version must resume an old run."""
    assert epoch_permutation(7, 1, 10).tolist() == [3, 9, 1, 6, 2, 5, 4, 8, 0, 7]
    assert sample_keys(7, np.arange(4)).tolist() == [-1599421396, -1677637743, 1757412564, -14013703]
    assert sample_keys(7, np.arange(4), 1).tolist() == [-914002005, 1880147724, 672566474, 386504155]
    draws = draw_uniform(7, np.array([5]), 1, 3)
    assert draws.tolist() == [[0.02913435744435311, 0.39287955475507197, 0.2476472221622622]]


def test_the_kept_permutation_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        epoch_permutation(0, 0, 5)[0] = 1


@given(SEEDS, st.lists(st.integers(0, 2**62), max_size=20), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_keys_and_draws_depend_on_their_position_alone(seed: int, positions: list[int], stream: int) -> None:
    array = np.array(positions, dtype=np.int64)
    keys, draws = sample_keys(seed, array, stream), draw_uniform(seed, array, stream, 3)
    assert keys.dtype == np.int32 and keys.shape == (len(positions),)
    assert draws.shape == (len(positions), 3) and ((draws >= 0) & (draws < 1)).all()
    for row, position in enumerate(positions):
        assert sample_keys(seed, np.array([position]), stream)[0] == keys[row]
        assert np.array_equal(draw_uniform(seed, np.array([position]), stream, 3)[0], draws[row])


def test_keys_do_not_repeat_between_seeds_streams_and_positions() -> None:
    keys = [sample_keys(seed, np.arange(1000), stream) for seed in (0, 1, 2**63) for stream in (0, 1)]
    # 6,000 keys of 32 bits: 0.004 pairs are expected to agree.
    assert len(np.unique(np.concatenate(keys))) >= 5999


def test_draws_are_uniform_and_independent() -> None:
    draws = draw_uniform(3, np.arange(20000), 5, 4)
    assert np.abs(draws.mean(0) - 0.5).max() < 5 * (1 / 12 / 20000) ** 0.5
    assert np.abs(draws.var(0) - 1 / 12).max() < 0.003
    others = draw_uniform(3, np.arange(20000), 6, 1)
    correlations = np.corrcoef(np.concatenate([draws, others, np.roll(others, 1, axis=0)], axis=1).T)
    assert np.abs(correlations - np.eye(6)).max() < 0.04


def test_too_few_pictures_are_refused_with_both_numbers() -> None:
    with pytest.raises(VitcoreError, match="100 training pictures do not fill one global batch of 512; use a smaller"):
        usable_length(100, 512)
    with pytest.raises(VitcoreError, match="global batch 0 must be at least 1"):
        usable_length(100, 0)


def test_a_negative_position_is_refused() -> None:
    with pytest.raises(VitcoreError, match="position -3 is negative"):
        sample_indices(0, np.array([2, -3]), 10, 10)


def test_order_registry_and_augmentation_settings_need_no_torch() -> None:
    code = (
        "import sys, vitcore.data.order, vitcore.data.datasets, vitcore.data.augment as a; a.Augment(rotate=5.0);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
