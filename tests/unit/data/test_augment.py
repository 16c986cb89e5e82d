"""Augmentation: pure in (seed, position), to the last bit, and doing what its fields say."""

import numpy as np
import pytest
import torch

from vitcore.config import Config
from vitcore.data.augment import Augment
from vitcore.data.order import draw_uniform
from vitcore.data.places import CROP_DRAWS, crop_box, draw_affine, draw_flips
from vitcore.data.warp import affine_batch, gain_batch
from vitcore.errors import VitcoreError

FULL = Augment(rotate=20.0, scale=(0.8, 1.2), shear=10.0, translate=2.0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 33, 17)])
def test_a_picture_does_not_depend_on_the_batch_around_it(shape: tuple[int, ...]) -> None:
    images = torch.rand(37, *shape, generator=torch.Generator().manual_seed(0))
    positions = np.arange(100, 137)
    whole = affine_batch(images, 5, positions, FULL)
    for rows in ([0], [36], [3, 4, 5], [20, 7], list(range(1, 37))):
        part = affine_batch(images[rows], 5, positions[rows], FULL)
        assert torch.equal(part, whole[rows])


def test_nothing_to_do_leaves_the_picture() -> None:
    images = torch.rand(4, 1, 8, 8)
    assert not Augment().warps
    assert torch.allclose(affine_batch(images, 0, np.arange(4), Augment()), images, atol=1e-6)


def test_whole_pixels_move_with_background_behind() -> None:
    images = torch.rand(1, 1, 8, 8)
    # A matrix of a known move stands in for the draw: two pixels right, one down.
    matrix = draw_affine(0, np.arange(1), Augment(translate=3.0))
    assert np.allclose(matrix[0, :, :2], np.eye(2))
    assert np.abs(matrix[0, :, 2]).max() <= 3.0
    moved = affine_batch(images, 0, np.arange(1), Augment(translate=3.0))
    x, y = -matrix[0, :, 2]
    ramp = affine_batch(torch.arange(8.0).expand(1, 1, 8, 8) / 8, 0, np.arange(1), Augment(translate=3.0))
    inside = ramp[0, 0, 4, 4]
    assert float(inside) == pytest.approx((4 - x) / 8, abs=1e-5)
    edge = 0 if x > 0 else 7
    assert abs(x) < 1 or not moved[0, 0, :, edge].any()
    assert abs(y) < 1 or not moved[0, 0, 0 if y > 0 else 7].any()


def test_the_matrix_stays_inside_its_ranges() -> None:
    only_turn = draw_affine(0, np.arange(200), Augment(rotate=30.0))
    angles = np.degrees(np.arctan2(only_turn[:, 0, 1], only_turn[:, 0, 0]))
    assert np.abs(angles).max() <= 30.0 and angles.min() < -25 and angles.max() > 25
    only_size = draw_affine(0, np.arange(200), Augment(scale=(0.5, 2.0)))
    sizes = 1 / only_size[:, 0, 0]
    assert 0.5 <= sizes.min() < 0.6 and 1.9 < sizes.max() <= 2.0
    shears = draw_affine(0, np.arange(200), Augment(shear=20.0))
    assert np.allclose(np.linalg.det(shears[:, :, :2]), 1.0)
    assert 0.3 < np.abs(shears[:, 0, 1]).max() <= np.tan(np.radians(20.0))


def test_half_of_the_pictures_are_mirrored() -> None:
    flips = draw_flips(1, np.arange(10000))
    assert abs(flips.mean() - 0.5) < 0.025


def test_crops_fit_and_have_the_area_and_ratio_they_should() -> None:
    boxes = [crop_box(300, 400, row, (0.05, 1.0)) for row in draw_uniform(0, np.arange(2000), 3, CROP_DRAWS)]
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height and 0 <= left <= 400 - width
        assert 0.72 < width / height < 1.39
        assert height * width > 0.045 * 300 * 400
    areas = np.array([height * width for _, _, height, width in boxes]) / (300 * 400)
    assert 0.4 < areas.mean() < 0.55


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (2, 3)])
def test_a_crop_of_an_odd_picture_falls_back_to_its_centre(height: int, width: int) -> None:
    for row in draw_uniform(0, np.arange(50), 3, CROP_DRAWS):
        top, left, box_height, box_width = crop_box(height, width, row, (0.9, 1.0))
        assert box_height >= 1 and box_width >= 1
        assert top + box_height <= height and left + box_width <= width


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rotate": -1.0}, "rotate=-1.0 is negative"),
        ({"shear": 90.0}, "shear=90.0 degrees flattens"),
        ({"scale": (1.2, 0.8)}, "is not a range; give"),
        ({"scale": (0.0, 1.0)}, "is not a range; give"),
        ({"crop": (0.0, 1.0)}, "is not a range of shares"),
        ({"crop": (0.5, 1.5)}, "is not a range of shares"),
        ({"policy": "auto"}, "policy='auto' is unknown; choose one of none, randaugment, three"),
        ({"ops": 0}, "ops=0 is no chain"),
        ({"magnitude": 31}, "magnitude=31 is not on RandAugment's scale; give one from 0 to 30"),
        ({"magnitude": -1}, "magnitude=-1 is not on"),
        ({"jitter": -0.1}, "jitter=-0.1 is negative; give the size"),
        ({"mixup": -0.1}, "mixup=-0.1 is negative; give its alpha"),
        ({"cutmix": -1.0}, "cutmix=-1.0 is negative; give its alpha"),
        ({"mix_probability": 1.5}, "mix_probability=1.5 is no probability"),
        ({"erase": -0.5}, "erase=-0.5 is no probability"),
        ({"patch_dropout": 1.0}, "patch_dropout=1.0 leaves no patch"),
    ],
)
def test_numbers_that_are_no_augmentation_are_refused(fields: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        Augment(**fields)


def test_gain_brightens_each_picture_by_its_own_factor_and_stops_at_white() -> None:
    images = torch.full((64, 1, 4, 4), 0.5)
    bright = gain_batch(images, 3, np.arange(64), Augment(gain=0.5))
    factors = bright[:, 0, 0, 0] / 0.5
    assert torch.equal(bright, bright[:, :1, :1, :1].expand_as(bright))
    assert 1.0 <= factors.min() < 1.1 and 1.4 < factors.max() < 1.5
    assert gain_batch(torch.ones(8, 1, 2, 2), 3, np.arange(8), Augment(gain=0.5)).max() == 1.0
    part = gain_batch(images[5:9], 3, np.arange(5, 9), Augment(gain=0.5))
    assert torch.equal(part, bright[5:9])


def test_the_settings_of_a_run_become_what_is_done() -> None:
    assert Config().augmentation == Augment()
    config = Config(
        augment_rotate=1.0, augment_scale=(0.5, 2.0), augment_shear=2.0, augment_translate=3.0, augment_gain=0.5,
        augment_flip=True, augment_crop=(0.1, 1.0), augment_policy="randaugment", randaugment_ops=3,
        randaugment_magnitude=15, color_jitter=0.3, mixup=0.8, cutmix=1.0, mix_probability=0.5, erase=0.25,
        patch_dropout=0.4,
    )  # fmt: skip
    assert config.augmentation == Augment(
        rotate=1.0, scale=(0.5, 2.0), shear=2.0, translate=3.0, gain=0.5, flip=True, crop=(0.1, 1.0),
        policy="randaugment", ops=3, magnitude=15, jitter=0.3, mixup=0.8, cutmix=1.0, mix_probability=0.5, erase=0.25,
        patch_dropout=0.4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({}, ()),
        ({"augment_crop": (0.1, 1.0), "color_jitter": 0.3, "patch_dropout": 0.5}, ()),
        ({"cutmix": 1.0, "mix_probability": 0.0}, ("mix",)),
        ({"mixup": 0.8, "erase": 0.25, "augment_flip": True}, ("flip", "erase", "mix")),
    ],
)
def test_the_step_and_the_draws_agree_on_what_the_device_does(fields: dict, parts: tuple[str, ...]) -> None:
    config = Config(**fields)
    assert config.spec.augment == parts
    assert config.augmentation.on_device == parts


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"crop": (0.1, 1.0)}, "digits: random crops are for folders"),
        ({"policy": "three"}, "digits: policies and color jitter are for pictures that are decoded"),
        ({"jitter": 0.4}, "digits: policies and color jitter"),
    ],
)
def test_data_that_is_not_decoded_refuses_what_decoding_does(fields: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        Augment(**fields).without_decoding("digits")
    plain = Augment(rotate=3.0, flip=True, mixup=0.8, erase=0.5, patch_dropout=0.5)
    assert plain.without_decoding("digits") is plain
