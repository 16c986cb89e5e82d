"""Policies on one picture: op by op what torchvision does, and the same whoever decodes it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from vitcore.data.augment import Augment
from vitcore.data.policy import (
    OPS,
    SOLARIZE_FROM,
    apply_policy,
    blur,
    draw_policy,
    jitter,
    jitter_choice,
    randaugment_choice,
    three_augment,
)

RANDAUGMENT = Augment(policy="randaugment", ops=3, magnitude=15, jitter=0.3)
THREE = Augment(policy="three", jitter=0.3)
SIZES = [(32, 32), (17, 40)]


def picture(rows: int = 32, columns: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Noise on a slope, not over all of the range, so that no op leaves it as it is by chance."""
    noise = torch.rand(channels, rows, columns, generator=torch.Generator().manual_seed(seed))
    slope = torch.linspace(0, 120, columns) + torch.linspace(0, 60, rows)[:, None]
    return (20 + slope + 40 * noise).to(torch.uint8)


def torchvisions(name: str, image: Tensor, magnitude: float) -> Tensor:
    its = v2.RandAugment()
    return its._apply_image_or_video_transform(image, name, magnitude, interpolation=its.interpolation, fill=its._fill)


def test_randaugment_has_torchvisions_ops_magnitudes_and_signs() -> None:
    theirs = v2.RandAugment._AUGMENTATION_SPACE
    assert list(OPS) == list(theirs)
    for name, (magnitudes, signed) in theirs.items():
        assert OPS[name].signed is signed
        for rows, columns in SIZES:
            table = magnitudes(31, rows, columns)
            ours = OPS[name].magnitudes
            assert (ours is None) is (table is None)
            assert ours is None or torch.equal(ours(rows, columns), table.to(torch.float32))


@pytest.mark.parametrize("name", list(OPS))
@pytest.mark.parametrize("channels", [3, 1])
def test_each_op_is_torchvisions_bit_for_bit(name: str, channels: int) -> None:
    place = (list(OPS).index(name) + 0.5) / len(OPS)
    changed = 0
    for rows, columns in SIZES:
        image = picture(rows, columns, channels)
        for magnitude in (1, 9, 30):
            for sign in (0.2, 0.8):
                chosen, value = randaugment_choice(place, sign, magnitude, (rows, columns))
                assert chosen == name and (value <= 0 if OPS[name].signed and sign < 0.5 else value >= 0)
                result = OPS[name].apply(F, image, value)
                assert torch.equal(result, torchvisions(name, image, value))
                changed += not torch.equal(result, image)
    assert (changed == 0) is (name == "Identity" or (name == "Color" and channels == 1))


def test_a_chain_is_torchvisions_when_it_draws_what_we_drew() -> None:
    augment = Augment(policy="randaugment", ops=4, magnitude=12)
    image = picture()
    for row in draw_policy(3, np.arange(40), augment):
        expected = image
        for kind, sign in row.reshape(4, 2):
            expected = torchvisions(*_named(expected, kind, sign))
        assert torch.equal(apply_policy(image, row, augment), expected)


def _named(image: Tensor, kind: float, sign: float) -> tuple[str, Tensor, float]:
    name, value = randaugment_choice(kind, sign, 12, image.shape[-2:])
    return name, image, value


@pytest.mark.parametrize("channels", [3, 1])
def test_three_is_grey_or_solarised_or_blurred(channels: int) -> None:
    image = picture(channels=channels)
    grey, solarised, blurred = (three_augment(image, which, 0.5) for which in (0.0, 0.5, 0.99))
    assert torch.equal(grey, F.rgb_to_grayscale(image, num_output_channels=channels))
    assert torch.equal(grey, image) is (channels == 1)
    assert torch.equal(solarised, torch.where(image >= SOLARIZE_FROM, 255 - image, image))
    assert torch.equal(blurred, F.gaussian_blur(image, kernel_size=[9, 9], sigma=[1.05, 1.05]))


def test_three_is_near_what_its_authors_do_with_pillow() -> None:
    image = picture(64, 64)
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    assert torch.equal(
        three_augment(image, 0.5, 0.0), torch.from_numpy(np.array(ImageOps.solarize(pillow))).permute(2, 0, 1)
    )
    for sigma in (0.5, 1.0, 2.0):
        theirs = torch.from_numpy(np.array(pillow.filter(ImageFilter.GaussianBlur(sigma)))).permute(2, 0, 1).int()
        inside = (slice(None), slice(8, -8), slice(8, -8))  # Pillow repeats the edge, torchvision mirrors it.
        away = (blur(image, sigma).int() - theirs).abs()[inside].float()
        unblurred = (image.int() - theirs).abs()[inside].float()
        assert away.mean() < 1.0 < unblurred.mean()


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (3, 2), (8, 8)])
def test_a_tiny_picture_is_blurred_too(rows: int, columns: int) -> None:
    image = picture(rows, columns)
    assert blur(image, 2.0).shape == image.shape
    flat = torch.full_like(image, 77)
    assert torch.equal(blur(flat, 2.0), flat)


@pytest.mark.parametrize("channels", [3, 1])
def test_jitter_is_torchvisions_with_the_same_factors_and_order(channels: int) -> None:
    image, its = picture(channels=channels), v2.ColorJitter(0.4, 0.4, 0.4)
    for row in draw_policy(5, np.arange(30), Augment(jitter=0.4)).tolist():
        choice = jitter_choice(row, 0.4)
        factors = dict(choice)
        names = {"brightness_factor": factors[0], "contrast_factor": factors[1], "saturation_factor": factors[2]}
        params = {"fn_idx": [which for which, _ in choice], **names, "hue_factor": None}
        assert torch.equal(jitter(image, row, 0.4), its.transform(image, params))


def test_wide_jitter_never_has_a_negative_factor() -> None:
    rows = draw_policy(5, np.arange(500), Augment(jitter=1.5)).tolist()
    factors = np.array([[factor for _, factor in jitter_choice(row, 1.5)] for row in rows])
    assert 0.0 <= factors.min() < 0.05 and 2.4 < factors.max() <= 2.5
    assert {tuple(which for which, _ in jitter_choice(row, 1.5)) for row in rows} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip


def test_the_policy_comes_before_the_jitter() -> None:
    image = picture()
    for row in draw_policy(1, np.arange(20), THREE):
        first = apply_policy(image, row[:2], Augment(policy="three"))
        assert torch.equal(apply_policy(image, row, THREE), apply_policy(first, row[2:], Augment(jitter=0.3)))


@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(1, 8), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_draws_do_not_depend_on_the_batch(seed: int, first: int, rows: int, ops: int) -> None:
    for augment in (Augment(policy="randaugment", ops=ops, jitter=0.1), THREE, Augment(jitter=0.1), Augment()):
        positions = np.arange(first, first + rows)
        whole = draw_policy(seed, positions, augment)
        assert whole.shape[0] == rows
        for row, position in enumerate(positions):
            assert np.array_equal(draw_policy(seed, np.array([position]), augment)[0], whole[row])


@pytest.mark.parametrize("augment", [RANDAUGMENT, THREE])
def test_threads_that_share_the_work_make_the_same_pictures(augment: Augment) -> None:
    images, draws = [picture(seed=seed) for seed in range(40)], draw_policy(2, np.arange(40), augment)
    before = [image.clone() for image in images]
    alone = [apply_policy(image, row, augment) for image, row in zip(images, draws)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda at: apply_policy(images[at], draws[at], augment), range(40)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together))
    assert all(torch.equal(a, b) for a, b in zip(images, before))
    assert all(a.dtype == torch.uint8 and a.shape == b.shape for a, b in zip(alone, images))
    assert sum(not torch.equal(a, b) for a, b in zip(alone, images)) > 35


def test_nothing_to_do_leaves_the_picture() -> None:
    image = picture()
    assert apply_policy(image, draw_policy(0, np.arange(1), Augment())[0], Augment()) is image


def test_a_seed_means_the_same_for_ever() -> None:
    draws = draw_policy(7, np.array([5]), THREE)
    expected = [0.36072424, 0.93754553, 0.03008200, 0.65118721, 0.51236026, 0.97016474]
    assert draws[0].tolist() == pytest.approx(expected, abs=1e-8)
    assert tuple(OPS)[:3] == ("Identity", "ShearX", "ShearY") and tuple(OPS)[-1] == "Equalize" and len(OPS) == 14
