"""Policies that change one decoded picture: RandAugment, 3-Augment and color jitter, on uint8, by torchvision.

What is done is drawn from (seed, position) alone, so a picture is the same whichever worker decodes it. torchvision is
imported where a picture is changed, not before. Of grey pictures, what is about colour leaves them as they are.
"""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import MOST_MAGNITUDE, Augment
from vitcore.data.order import JITTER_STREAM, POLICY_STREAM, Int64s, draw_uniform
from vitcore.errors import VitcoreError

# 3-Augment, as its authors' code has it: below this byte nothing is inverted; standard deviations of the blur, in pixels.
SOLARIZE_FROM = 128
BLUR = (0.1, 2.0)
# Three factors and their order.
JITTER_DRAWS = 4
JITTER_ORDERS = tuple(permutations(range(3)))


def draw_policy(seed: int, positions: Int64s, augment: Augment) -> npt.NDArray[np.float64]:
    """The draws for `apply_policy`, uniform in [0, 1), of shape (len(positions), count); count follows from `augment`."""
    count = {"none": 0, "three": 2, "randaugment": 2 * augment.ops}[augment.policy]
    policy = draw_uniform(seed, positions, POLICY_STREAM, count)
    jitter = draw_uniform(seed, positions, JITTER_STREAM, JITTER_DRAWS if augment.jitter > 0.0 else 0)
    return np.concatenate([policy, jitter], axis=1)


def apply_policy(picture_CHW: Tensor, draws: npt.NDArray[np.float64], augment: Augment) -> Tensor:
    """A uint8 picture of 1 or 3 channels after the policy, then the jitter, that its row of `draw_policy` says.

    Returns uint8 of the same shape; the picture that was given stays as it is.
    """
    numbers = draws.tolist()
    if augment.policy == "randaugment":
        for kind, sign in zip(numbers[: 2 * augment.ops : 2], numbers[1 : 2 * augment.ops : 2]):
            name, magnitude = randaugment_choice(kind, sign, augment.magnitude, picture_CHW.shape[-2:])
            picture_CHW = OPS[name].apply(_functional(), picture_CHW, magnitude)
    elif augment.policy == "three":
        picture_CHW = three_augment(picture_CHW, numbers[0], numbers[1])
    return jitter(picture_CHW, numbers[-JITTER_DRAWS:], augment.jitter) if augment.jitter > 0.0 else picture_CHW


def three_augment(picture_CHW: Tensor, which: float, sigma: float) -> Tensor:
    """One of grey, solarised and blurred: the 3-Augment of Touvron et al. 2022 (DeiT III, arXiv 2204.07118).

    `which` and `sigma` are uniform in [0, 1). The authors blur by Pillow, which takes the mean of boxes for a Gaussian;
    here it is a Gaussian, cut off beyond three standard deviations.
    """
    functional = _functional()
    chosen = int(which * 3)
    if chosen == 0:
        return functional.rgb_to_grayscale(picture_CHW, num_output_channels=picture_CHW.shape[0])
    if chosen == 1:
        return functional.solarize(picture_CHW, threshold=SOLARIZE_FROM)
    return blur(picture_CHW, BLUR[0] + sigma * (BLUR[1] - BLUR[0]))


def blur(picture_CHW: Tensor, sigma: float) -> Tensor:
    """A Gaussian blur of standard deviation `sigma` in pixels, mirrored at the edges."""
    # Mirroring needs more pixels than it adds, so a tiny picture has a shorter kernel.
    rows, columns = (2 * min(math.ceil(3.0 * sigma), side - 1) + 1 for side in picture_CHW.shape[-2:])
    return _functional().gaussian_blur(picture_CHW, kernel_size=[columns, rows], sigma=[sigma, sigma])


def jitter(picture_CHW: Tensor, draws: Sequence[float], width: float) -> Tensor:
    """Brightness, contrast and saturation, each times its factor: torchvision's ColorJitter without hue."""
    functional = _functional()
    changes = (functional.adjust_brightness, functional.adjust_contrast, functional.adjust_saturation)
    for which, factor in jitter_choice(draws, width):
        picture_CHW = changes[which](picture_CHW, factor)
    return picture_CHW


def jitter_choice(draws: Sequence[float], width: float) -> list[tuple[int, float]]:
    """The changes, 0 brightness, 1 contrast, 2 saturation, in their order, each with its factor.

    `draws`, uniform in [0, 1): one for each factor, from max(0, 1 - width) to 1 + width, and one for the order.
    """
    low, high = max(0.0, 1.0 - width), 1.0 + width
    order = JITTER_ORDERS[int(draws[3] * len(JITTER_ORDERS))]
    return [(which, low + draws[which] * (high - low)) for which in order]


class Op(NamedTuple):
    """A transformation of RandAugment.

    magnitudes: all 31 of its magnitudes, weakest first, for a picture of (rows, columns); None where it has none.
    signed: whether a magnitude is negative half of the time. apply: functional, uint8 picture, magnitude to picture.
    """

    magnitudes: Callable[[int, int], Tensor] | None
    signed: bool
    apply: Callable[[Any, Tensor, float], Tensor]


def randaugment_choice(kind: float, sign: float, magnitude: int, size: Sequence[int]) -> tuple[str, float]:
    """Which transformation, and its magnitude with its sign: uniform over `OPS`, as in torchvision's RandAugment.

    Cubuk et al. 2019 (arXiv 1909.13719). `kind` and `sign` are uniform in [0, 1), `magnitude` is of 0 .. 30.
    """
    name = tuple(OPS)[int(kind * len(OPS))]
    op = OPS[name]
    if op.magnitudes is None:
        return name, 0.0
    value = float(op.magnitudes(size[0], size[1])[magnitude])
    return name, -value if op.signed and sign < 0.5 else value


def _to(highest: float, lowest: float = 0.0) -> Callable[[int, int], Tensor]:
    return lambda rows, columns: torch.linspace(lowest, highest, MOST_MAGNITUDE + 1)


def _affine(f: Any, x: Tensor, right: float = 0.0, down: float = 0.0, shear: Sequence[float] | None = None) -> Tensor:
    """A move by whole pixels about the centre, or a shear, of tangents (x, y), about the upper left corner."""
    degrees = [math.degrees(math.atan(tangent)) for tangent in shear or (0.0, 0.0)]
    center = [0, 0] if shear else None
    return f.affine(x, angle=0.0, translate=[int(right), int(down)], scale=1.0, shear=degrees, center=center)


# The names, ranges and rules of torchvision.transforms.v2.RandAugment, also its nearest pixel and black background. The
# order is part of what a seed means.
OPS: dict[str, Op] = {
    "Identity": Op(None, False, lambda f, x, m: x),
    "ShearX": Op(_to(0.3), True, lambda f, x, m: _affine(f, x, shear=(m, 0.0))),
    "ShearY": Op(_to(0.3), True, lambda f, x, m: _affine(f, x, shear=(0.0, m))),
    "TranslateX": Op(lambda h, w: _to(150.0 / 331.0 * w)(h, w), True, lambda f, x, m: _affine(f, x, right=m)),
    "TranslateY": Op(lambda h, w: _to(150.0 / 331.0 * h)(h, w), True, lambda f, x, m: _affine(f, x, down=m)),
    "Rotate": Op(_to(30.0), True, lambda f, x, m: f.rotate(x, angle=m)),
    "Brightness": Op(_to(0.9), True, lambda f, x, m: f.adjust_brightness(x, 1.0 + m)),
    "Color": Op(_to(0.9), True, lambda f, x, m: f.adjust_saturation(x, 1.0 + m)),
    "Contrast": Op(_to(0.9), True, lambda f, x, m: f.adjust_contrast(x, 1.0 + m)),
    "Sharpness": Op(_to(0.9), True, lambda f, x, m: f.adjust_sharpness(x, 1.0 + m)),
    "Posterize": Op(
        lambda h, w: (8 - torch.arange(MOST_MAGNITUDE + 1) / (MOST_MAGNITUDE / 4)).round(), False,
        lambda f, x, m: f.posterize(x, bits=int(m)),
    ),
    "Solarize": Op(_to(0.0, 1.0), False, lambda f, x, m: f.solarize(x, threshold=255.0 * m)),
    "AutoContrast": Op(None, False, lambda f, x, m: f.autocontrast(x)),
    "Equalize": Op(None, False, lambda f, x, m: f.equalize(x)),
}  # fmt: skip


def _functional() -> Any:
    try:
        from torchvision.transforms.v2 import functional
    except ImportError as error:
        raise VitcoreError(f"policies and color jitter need torchvision ({error}); pip install torchvision") from error
    return functional
