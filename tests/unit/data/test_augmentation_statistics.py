"""What is drawn is distributed as torchvision draws it, by tests that find planted errors.

Numbers are compared by a two-sample Kolmogorov-Smirnov test, kinds by chi-square on their counts. A comparison fails
below p = 1e-3. All seeds are fixed, so what passes once passes always. N samples of each side in CI, 100,000 in the slow
form.
"""

import math
from collections.abc import Callable
from functools import cache
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from vitcore.data import draws as draws_module
from vitcore.data import places as places_module
from vitcore.data.augment import Augment
from vitcore.data.draws import draw_batch, draw_kept, symmetric_beta
from vitcore.data.order import draw_uniform
from vitcore.data.places import crop_box, draw_crops, draw_flips
from vitcore.data.policy import BLUR, OPS, apply_policy, draw_policy, jitter_choice, randaugment_choice, three_augment

ALPHA = 1e-3
N, SLOW_N = 4000, 100_000
ROWS, COLUMNS = 300, 400
SHARE = (0.08, 1.0)
PIXELS = torch.zeros(3, ROWS, COLUMNS, dtype=torch.uint8)

Numbers = npt.NDArray[np.float64]
Sample = Callable[[int], Numbers]


def p_value(first: Numbers, second: Numbers) -> float:
    """Of the hypothesis that both are drawn from one distribution: whole numbers are kinds."""
    if first.dtype.kind != "f":
        kinds = np.union1d(first, second)
        counts = [[(sample == kind).sum() for kind in kinds] for sample in (first, second)]
        return float(stats.chi2_contingency(counts).pvalue)
    return float(stats.ks_2samp(first, second).pvalue)


def torchvisions(sample: Sample) -> Sample:
    """A sample of torchvision's, from a fixed seed, drawn once."""

    @cache
    def seeded(count: int) -> Numbers:
        torch.manual_seed(20201022)
        return sample(count)

    return seeded


# Each box is top, left, height, width.


def our_crops(count: int) -> Numbers:
    return np.array([crop_box(ROWS, COLUMNS, row, SHARE) for row in draw_crops(11, np.arange(count))], dtype=float)


@torchvisions
def their_crops(count: int) -> Numbers:
    its = v2.RandomResizedCrop(224, scale=SHARE)
    params = [its.make_params([PIXELS]) for _ in range(count)]
    return np.array([[p["top"], p["left"], p["height"], p["width"]] for p in params], dtype=float)


def our_boxes(name: str, augment: Augment, count: int) -> Numbers:
    boxes = draw_batch(12, np.arange(count), torch.ones(count), augment, (ROWS, COLUMNS))[name].double().numpy()
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


@torchvisions
def their_erased(count: int) -> Numbers:
    its = v2.RandomErasing()
    params = [its.make_params([PIXELS]) for _ in range(count)]
    return np.array([[p["i"], p["j"], p["h"], p["w"]] for p in params if p["v"] is not None], dtype=float)


@torchvisions
def their_cuts(count: int) -> Numbers:
    its = v2.CutMix(alpha=1.0)
    boxes = np.array([its.make_params([PIXELS[None]])["box"] for _ in range(count)], dtype=float)
    left, top, right, bottom = boxes.T
    return np.stack([top, left, bottom - top, right - left], axis=1)


def area(boxes: Numbers) -> Numbers:
    return boxes[:, 2] * boxes[:, 3] / (ROWS * COLUMNS)


def aspect(boxes: Numbers) -> Numbers:
    boxes = boxes[area(boxes) > 0]
    return np.log(boxes[:, 3] / boxes[:, 2])


def top(boxes: Numbers) -> Numbers:
    return boxes[:, 0]


def left(boxes: Numbers) -> Numbers:
    return boxes[:, 1]


def our_cuts(count: int) -> Numbers:
    return our_boxes("box", Augment(cutmix=1.0), count)


def our_erased(count: int) -> Numbers:
    return our_boxes("erase", Augment(erase=1.0), count)


def our_blends(count: int, alpha: float = 0.8) -> Numbers:
    return draw_batch(13, np.arange(count), torch.ones(count), Augment(mixup=alpha), (8, 8))["own"].double().numpy()


@torchvisions
def their_blends(count: int) -> Numbers:
    its = v2.MixUp(alpha=0.8)
    return np.array([its.make_params([])["lam"] for _ in range(count)])


def our_flips(count: int) -> Numbers:
    return draw_flips(14, np.arange(count)).astype(int)


@torchvisions
def their_flips(count: int) -> Numbers:
    its, ramp = v2.RandomHorizontalFlip(), torch.arange(2.0).reshape(1, 1, 2)
    return np.array([int(its(ramp)[0, 0, 0]) for _ in range(count)])


def our_ops(count: int) -> Numbers:
    """The op, and of the signed ones the sign too: 2 * op + negative."""
    rows = draw_policy(15, np.arange(count), Augment(policy="randaugment", ops=1)).tolist()
    chosen = [randaugment_choice(kind, sign, 9, (ROWS, COLUMNS)) for kind, sign in rows]
    return np.array([2 * list(OPS).index(name) + (value < 0) for name, value in chosen])


class Recorder(v2.RandAugment):
    """torchvision's, which notes what it chose instead of doing it."""

    def _apply_image_or_video_transform(self, image, transform_id, magnitude, interpolation, fill):  # type: ignore[no-untyped-def]
        self.chosen = 2 * list(OPS).index(transform_id) + (magnitude < 0)
        return image


@torchvisions
def their_ops(count: int) -> Numbers:
    its, chosen = Recorder(num_ops=1), []
    for _ in range(count):
        its(PIXELS)
        chosen.append(its.chosen)
    return np.array(chosen)


def our_jitter(count: int) -> list[list[tuple[int, float]]]:
    return [jitter_choice(row, 0.3) for row in draw_policy(16, np.arange(count), Augment(jitter=0.3)).tolist()]


@torchvisions
def their_jitter(count: int) -> Numbers:
    """The three factors, and the order as one number."""
    its, names = v2.ColorJitter(0.3, 0.3, 0.3), ("brightness_factor", "contrast_factor", "saturation_factor")
    params = [its.make_params([]) for _ in range(count)]
    return np.array([[*(p[n] for n in names), order_of([w for w in p["fn_idx"].tolist() if w < 3])] for p in params])


def order_of(which: list[int]) -> int:
    return which[0] * 9 + which[1] * 3 + which[2]


def our_order(count: int) -> Numbers:
    return np.array([order_of([which for which, _ in choice]) for choice in our_jitter(count)])


def their_order(count: int) -> Numbers:
    return their_jitter(count)[:, 3].astype(int)


def our_three(count: int) -> Numbers:
    """0 grey, 1 solarised, 2 blurred, told by what became of a picture, that is not really blurred."""
    tiny = torch.tensor([[[0, 200]], [[0, 10]], [[90, 0]]], dtype=torch.uint8)
    rows, augment = draw_policy(17, np.arange(count), Augment(policy="three")), Augment(policy="three")
    with patch("vitcore.data.policy.blur", lambda image, sigma: image):
        kinds = [three_augment(tiny, (kind + 0.5) / 3, 0.5) for kind in range(3)]
        chosen = [apply_policy(tiny, row, augment) for row in rows]
    return np.array([next(kind for kind in range(3) if torch.equal(one, kinds[kind])) for one in chosen])


@torchvisions
def their_three(count: int) -> Numbers:
    its = v2.RandomChoice([lambda _, kind=kind: kind for kind in range(3)])
    return np.array([its(0) for _ in range(count)])


def of(measure: Callable[[Numbers], Numbers], boxes: Sample) -> Sample:
    return lambda count: measure(boxes(count))


def factor(which: int) -> tuple[Sample, Sample]:
    return (
        lambda count: np.array([dict(choice)[which] for choice in our_jitter(count)]),
        lambda count: their_jitter(count)[:, which],
    )


COMPARISONS: dict[str, tuple[Sample, Sample]] = {
    **{f"crop's {m.__name__}": (of(m, our_crops), of(m, their_crops)) for m in (area, aspect, top, left)},
    **{f"cutmix's {m.__name__}": (of(m, our_cuts), of(m, their_cuts)) for m in (area, top, left)},
    **{f"erasing's {m.__name__}": (of(m, our_erased), of(m, their_erased)) for m in (area, aspect, top, left)},
    "mixup's share": (our_blends, their_blends),
    "flips": (our_flips, their_flips),
    "RandAugment's ops and signs": (our_ops, their_ops),
    "brightness": factor(0),
    "contrast": factor(1),
    "saturation": factor(2),
    "jitter's order": (our_order, their_order),
    "3-Augment's kinds": (our_three, their_three),
}


def compare(name: str, count: int) -> float:
    ours, theirs = COMPARISONS[name]
    return p_value(ours(count), theirs(count))


@pytest.mark.parametrize("name", list(COMPARISONS))
def test_it_is_distributed_as_torchvision_draws_it(name: str) -> None:
    assert compare(name, N) >= ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("name", list(COMPARISONS))
def test_it_is_distributed_as_torchvision_draws_it_in_many_samples(name: str) -> None:
    assert compare(name, SLOW_N) >= ALPHA


def plant(monkeypatch: pytest.MonkeyPatch, name: str, wrong: object) -> None:
    """Put a wrong thing in the place of what a module of ours, or this one, calls `name`."""
    for module in (places_module, draws_module):
        if hasattr(module, name):
            monkeypatch.setattr(module, name, wrong)


def sideways(share: float, down: float, right: float, size: tuple[int, int]) -> draws_module.Box:
    """A cut whose sides, not its area, have the share."""
    return RIGHT_CUT(share * share, down, right, size)


def inside(share: float, down: float, right: float, size: tuple[int, int]) -> draws_module.Box:
    """A cut that is moved into the picture instead of being cut at its edge."""
    height, width = (int(math.sqrt(share) * side) for side in size)
    y, x = float(int(down * (size[0] - height + 1))), float(int(right * (size[1] - width + 1)))
    return y, x, y + height, x + width


RIGHT_CUT = draws_module.cut_box


@pytest.mark.parametrize(
    ("name", "planted", "wrong"),
    [
        ("crop's aspect", "CROP_RATIO", (0.7, 1.43)),
        ("crop's aspect", "CROP_RATIO", (0.75, 1.25)),
        ("crop's area", "CROP_RATIO", (0.5, 2.0)),
        ("erasing's area", "ERASE_SHARE", (0.02, 0.4)),
        ("erasing's aspect", "ERASE_RATIO", (0.3, 1 / 0.3 * 1.3)),
        ("cutmix's area", "cut_box", sideways),
        ("cutmix's area", "cut_box", inside),
        ("cutmix's top", "cut_box", inside),
        ("mixup's share", "symmetric_beta", lambda a, u, v: max(symmetric_beta(a, u, v), 1 - symmetric_beta(a, u, v))),
        ("mixup's share", "symmetric_beta", lambda a, u, v: symmetric_beta(a / 2, u, v)),
    ],
)
def test_the_same_test_finds_a_wrong_range_or_formula(
    name: str, planted: str, wrong: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, planted, wrong)
    assert compare(name, N) < ALPHA


def test_the_same_test_finds_a_biased_choice() -> None:
    """Draws squeezed by a twentieth: 52.6 percent flips, a last kind that is rare, and factors that end too early."""
    count = 20_000
    squeezed = draw_uniform(14, np.arange(count), 1, 4) * 0.95
    assert p_value((squeezed[:, 0] < 0.5).astype(int), their_flips(count)) < ALPHA
    ops = [randaugment_choice(kind, 0.9, 9, (ROWS, COLUMNS))[0] for kind in squeezed[:, 0].tolist()]
    unsigned = np.array([list(OPS).index(name) for name in ops])
    assert p_value(unsigned, their_ops(count) // 2) < ALPHA
    choices = [jitter_choice(row, 0.3) for row in squeezed.tolist()]
    assert p_value(np.array([dict(choice)[0] for choice in choices]), COMPARISONS["brightness"][1](count)) < ALPHA
    assert p_value(np.array([order_of([w for w, _ in choice]) for choice in choices]), their_order(count)) < ALPHA
    assert p_value((squeezed[:, 0] * 3).astype(int), their_three(count)) < ALPHA


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0, 50.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    exact = np.array([symmetric_beta(alpha, *row) for row in draw_uniform(18, np.arange(N), 5, 2).tolist()])
    assert stats.kstest(exact, stats.beta(alpha, alpha).cdf).pvalue >= ALPHA
    assert stats.kstest(exact, stats.beta(alpha, alpha * 1.3).cdf).pvalue < ALPHA
    blends = our_blends(N, alpha)
    assert blends.min() >= 0.0 and blends.max() <= 1.0


def test_a_tiny_alpha_gives_one_picture_or_the_other() -> None:
    shares = np.array([symmetric_beta(1e-3, *row) for row in draw_uniform(19, np.arange(N), 5, 2).tolist()])
    assert ((shares == 0.0) | (shares < 1e-3) | (shares > 1 - 1e-3)).mean() > 0.95
    assert stats.binomtest(int((shares > 0.5).sum()), N).pvalue >= ALPHA


def test_the_blur_is_uniform_over_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    sigmas: list[float] = []
    monkeypatch.setattr("vitcore.data.policy.blur", lambda image, sigma: sigmas.append(sigma) or image)
    for row in draw_policy(20, np.arange(3 * N), Augment(policy="three")):
        apply_policy(PIXELS[:, :1, :1], row, Augment(policy="three"))
    assert abs(len(sigmas) - N) < 200
    assert stats.kstest(sigmas, stats.uniform(BLUR[0], BLUR[1] - BLUR[0]).cdf).pvalue >= ALPHA
    assert stats.kstest(sigmas, stats.uniform(0.0, BLUR[1]).cdf).pvalue < ALPHA


def test_every_patch_and_every_pair_of_patches_is_kept_as_often_as_the_others() -> None:
    tokens, count = 9, 20_000
    kept = np.zeros((count, tokens), dtype=int)
    np.put_along_axis(kept, draw_kept(21, np.arange(count), tokens, 2 / 3), 1, axis=1)
    # All C(9, 3) = 84 subsets of three are as likely.
    subsets, seen = np.unique(kept @ (1 << np.arange(tokens)), return_counts=True)
    assert len(subsets) == math.comb(tokens, 3) and stats.chisquare(seen).pvalue >= ALPHA
    # The first of a sorted draw, kept a little too often, is found.
    biased = np.where(np.arange(count) % 20 == 0, 0b111, kept @ (1 << np.arange(tokens)))
    assert stats.chisquare(np.unique(biased, return_counts=True)[1]).pvalue < ALPHA


def test_mixup_and_cutmix_are_taken_half_and_half_and_as_often_as_asked() -> None:
    augment = Augment(mixup=0.8, cutmix=1.0, mix_probability=0.6)
    draws = draw_batch(22, np.arange(3 * N), torch.ones(3 * N), augment, (ROWS, COLUMNS))
    blended = int((draws["blend"] < 1).sum())
    cut = int((draws["box"].any(1)).sum())
    assert stats.binomtest(blended, 3 * N, 0.3).pvalue >= ALPHA
    assert stats.binomtest(cut, 3 * N, 0.3).pvalue >= ALPHA
    assert stats.binomtest(blended, 3 * N, 0.33).pvalue < ALPHA
    erased = int(
        draw_batch(22, np.arange(N), torch.ones(N), Augment(erase=0.25), (ROWS, COLUMNS))["erase"].any(1).sum()
    )
    assert stats.binomtest(erased, N, 0.25).pvalue >= ALPHA and stats.binomtest(erased, N, 0.3).pvalue < ALPHA
