"""What the host draws for the device: pure in (seed, position), whole pairs, and doing what its fields say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.draws import cut_box, draw_batch, erase_box
from vitcore.errors import VitcoreError

ALL = Augment(flip=True, mixup=0.8, cutmix=1.0, mix_probability=0.9, erase=0.5, patch_dropout=0.4)
SIZE = (48, 32)
TOKENS = 24


def drawn(
    positions: np.ndarray, augment: Augment = ALL, seed: int = 3, weight: Tensor | None = None
) -> dict[str, Tensor]:
    weight = torch.ones(len(positions)) if weight is None else weight
    return draw_batch(seed, positions, weight, augment, SIZE, TOKENS)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@given(
    st.integers(0, 2**62 - 1), st.integers(0, 2**40), st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.floats(0.05, 5.0), st.floats(0.05, 5.0),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_every_split_of_the_positions_gives_the_same_rows(
    seed: int, first: int, pairs: list[int], mixup: float, cutmix: float
) -> None:
    augment = Augment(flip=True, mixup=mixup, cutmix=cutmix, erase=0.5, patch_dropout=0.4)
    positions = np.arange(2 * first, 2 * first + 2 * sum(pairs))
    whole = drawn(positions, augment, seed)
    parts = np.split(positions, np.cumsum(pairs)[:-1] * 2)
    split = [drawn(part, augment, seed) for part in parts]
    assert same(whole, {name: torch.cat([part[name] for part in split]) for name in whole})


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 3])
def test_ranks_and_micro_steps_joined_are_one_large_batch(world_size: int, accumulation: int) -> None:
    micro = 48 // world_size // accumulation
    rows = [np.arange(at, at + micro) for at in range(0, 96, micro)]
    joined = {name: torch.cat([drawn(part)[name] for part in rows]) for name in drawn(rows[0])}
    assert same(joined, drawn(np.arange(96)))


def test_a_seed_means_the_same_for_ever() -> None:
    draws = draw_batch(7, np.arange(4), torch.ones(4), replace(ALL, erase=1.0), SIZE, 8)
    assert draws["flip"].tolist() == [False, True, False, False]
    assert draws["keep"].tolist() == [[1, 2, 3, 5, 6], [1, 2, 3, 5, 6], [1, 2, 3, 6, 7], [0, 3, 4, 5, 7]]
    assert draws["box"].tolist() == [[0, 0, 0, 0], [20, 12, 40, 24], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert draws["erase"].tolist() == [[17, 8, 33, 25], [19, 4, 35, 22], [0, 10, 21, 22], [4, 13, 26, 29]]
    assert draws["blend"].tolist() == pytest.approx([0.0469753109, 1.0, 0.1780826598, 1.0])
    assert draws["own"].tolist() == pytest.approx([0.0469753109, 0.84375, 0.1780826598, 1.0])


def test_names_shapes_and_dtypes_are_the_same_for_every_batch_and_only_what_is_asked_for_is_drawn() -> None:
    shapes = {
        "flip": ((6,), torch.bool), "blend": ((6,), torch.float32), "box": ((6, 4), torch.float32),
        "own": ((6,), torch.float32), "erase": ((6, 4), torch.float32), "keep": ((6, 14), torch.int64),
    }  # fmt: skip
    for weight in (torch.ones(6), torch.zeros(6)):
        for first in (0, 1000):
            draws = drawn(np.arange(first, first + 6), weight=weight)
            assert {name: (tuple(rows.shape), rows.dtype) for name, rows in draws.items()} == shapes
    nothing = drawn(np.arange(0))
    assert {name: (0, *shape[1:]) for name, (shape, _) in shapes.items()} == {
        n: tuple(t.shape) for n, t in nothing.items()
    }
    assert drawn(np.arange(6), Augment(policy="three", crop=(0.1, 1.0))) == {}
    for augment, names in (
        (Augment(flip=True), {"flip"}), (Augment(mixup=1.0), {"blend", "box", "own"}),
        (Augment(cutmix=1.0, mix_probability=0.0), {"blend", "box", "own"}), (Augment(erase=0.1), {"erase"}),
        (Augment(patch_dropout=0.1), {"keep"}),
    ):  # fmt: skip
        assert set(drawn(np.arange(6), augment)) == names
    assert set(drawn(np.arange(5), Augment(flip=True, erase=0.5, patch_dropout=0.5))) == {"flip", "erase", "keep"}


def test_a_picture_that_could_not_be_read_is_mixed_with_nothing_and_into_nothing() -> None:
    positions = np.arange(200)
    weight = (torch.arange(200) % 5 != 0).float()
    draws, whole = drawn(positions, weight=weight), drawn(positions)
    apart = (weight == 0) | (weight.reshape(-1, 2).flip(1).reshape(-1) == 0)
    assert apart.sum() == 80
    assert (draws["blend"][apart] == 1).all() and (draws["own"][apart] == 1).all() and not draws["box"][apart].any()
    for name in ("blend", "own", "box"):
        assert torch.equal(draws[name][~apart], whole[name][~apart])
    assert all(torch.equal(draws[name], whole[name]) for name in ("flip", "erase", "keep"))


def test_a_row_is_mixed_in_one_way_or_not_at_all_and_its_share_is_exact() -> None:
    draws = drawn(np.arange(4000))
    blend, box, own = (draws[name].double() for name in ("blend", "box", "own"))
    height, width = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    blended, cut = blend < 1, height * width > 0
    assert not (blended & cut).any()
    assert torch.equal(own[blended], blend[blended]) and not box[blended].any()
    assert torch.equal(own[~blended], (1 - height * width / (48 * 32))[~blended].float().double())
    assert (box[:, :2] >= 0).all() and (box[:, 2] <= 48).all() and (box[:, 3] <= 32).all()
    assert (box == box.round()).all() and (height >= 0).all() and (width >= 0).all()
    # Nine tenths are mixed, half of them blended. A cut of less than a pixel is none: few.
    assert abs(blended.double().mean() - 0.45) < 0.035 and 0.40 < cut.double().mean() < 0.47
    assert not torch.equal(own[0::2], own[1::2])


def test_alone_each_way_takes_every_row() -> None:
    mixup, cutmix = drawn(np.arange(500), Augment(mixup=0.8)), drawn(np.arange(500), Augment(cutmix=1.0))
    assert (mixup["blend"] < 1).all() and not mixup["box"].any()
    assert (cutmix["blend"] == 1).all() and (cutmix["own"] < 1).float().mean() > 0.9


def test_the_chance_of_mixing_does_not_move_what_is_drawn() -> None:
    always, sometimes = (
        drawn(np.arange(1000), Augment(mixup=0.8)),
        drawn(np.arange(1000), Augment(mixup=0.8, mix_probability=0.3)),
    )
    mixed = sometimes["blend"] < 1
    assert abs(mixed.float().mean() - 0.3) < 0.06
    assert torch.equal(sometimes["blend"][mixed], always["blend"][mixed])


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (np.arange(7), "7 of them are no whole pairs; use an even micro-batch"),
        (np.arange(1, 7), "position 1 stands without its partner"),
        (np.array([0, 1, 4, 3]), "position 4 stands without its partner"),
    ],
)
def test_rows_that_are_no_whole_pairs_are_refused(positions: np.ndarray, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        drawn(positions, Augment(mixup=0.8))


def test_patches_are_left_out_of_a_known_number_only() -> None:
    with pytest.raises(VitcoreError, match="patch_dropout needs the number of the model's patches; give tokens"):
        draw_batch(0, np.arange(2), torch.ones(2), Augment(patch_dropout=0.5), SIZE, None)


@pytest.mark.parametrize(
    ("rate", "tokens", "kept"), [(0.5, 196, 98), (0.4, 24, 14), (0.9, 10, 1), (0.99, 16, 1), (0.01, 16, 16)]
)
def test_the_patches_kept_are_distinct_and_ascending(rate: float, tokens: int, kept: int) -> None:
    keep = draw_batch(1, np.arange(64), torch.ones(64), Augment(patch_dropout=rate), SIZE, tokens)["keep"]
    assert keep.shape == (64, kept)
    assert (keep >= 0).all() and (keep < tokens).all() and (keep.diff(dim=1) > 0).all()


def test_a_cut_is_centred_on_its_pixel_and_ends_at_the_edge() -> None:
    assert cut_box(0.25, 0.5, 0.5, (48, 32)) == (12, 8, 36, 24)
    assert cut_box(0.25, 0.0, 0.999, (48, 32)) == (0, 23, 12, 32)
    assert cut_box(0.0, 0.5, 0.5, (48, 32)) == (24, 16, 24, 16)
    assert cut_box(1.0, 0.5, 0.5, (48, 32)) == (0, 0, 48, 32)


def test_where_no_rectangle_is_smaller_than_the_picture_none_is_erased() -> None:
    # Areas, ratios, then top and left. A third of a strip at 3.3 times the width is higher than the strip.
    assert erase_box([1.0] * 10 + [1.0] * 10 + [0.5, 0.5], (100, 1000)) == (0, 0, 0, 0)
    assert erase_box([0.5] * 22, (100, 100)) == (29, 29, 71, 71)
    second = erase_box([1.0, *[0.0] * 9, 1.0, *[0.5] * 9, 0.5, 0.0], (100, 1000))
    assert second == (28, 0, 73, 45)
