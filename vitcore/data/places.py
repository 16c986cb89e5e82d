"""Where pictures are mirrored, warped, made brighter and cropped: drawn as pure functions of (seed, global position)."""

import math

import numpy as np
import numpy.typing as npt

from vitcore.data.augment import Augment
from vitcore.data.order import AFFINE_STREAM, CROP_STREAM, FLIP_STREAM, GAIN_STREAM, Int64s, draw_uniform

# Width over height of a random crop, as in the original recipe.
CROP_RATIO = (3.0 / 4.0, 4.0 / 3.0)
# Tries to fit a random crop into the picture before its centre is taken.
CROP_ATTEMPTS = 10
# An area and a ratio for each try, then top and left.
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2


def draw_flips(seed: int, positions: Int64s) -> npt.NDArray[np.bool_]:
    """Which positions are mirrored, of shape (len(positions),)."""
    return draw_uniform(seed, positions, FLIP_STREAM, 1)[:, 0] < 0.5


def draw_affine(seed: int, positions: Int64s, augment: Augment) -> npt.NDArray[np.float64]:
    """For each position the matrix (2, 3) that maps a place in the result to a place in the picture.

    Places are (x, y) in pixels from the centre. Of shape (len(positions), 2, 3).
    """
    draws = draw_uniform(seed, positions, AFFINE_STREAM, 5)
    # One by one through libm: NumPy's vector sine may round by a value's place in its array, and a sample must not
    # depend on its batch.
    matrices = [_inverse_affine(row, augment) for row in draws.tolist()]
    return np.array(matrices, dtype=np.float64).reshape(len(draws), 2, 3)


def _inverse_affine(draws: list[float], augment: Augment) -> list[list[float]]:
    rotate, scale, shear, right, down = draws
    angle = math.radians((2.0 * rotate - 1.0) * augment.rotate)
    size = augment.scale[0] + scale * (augment.scale[1] - augment.scale[0])
    slope = math.tan(math.radians((2.0 * shear - 1.0) * augment.shear))
    x0, y0 = (2.0 * right - 1.0) * augment.translate, (2.0 * down - 1.0) * augment.translate
    # Forward: shear, then rotation and scale, then the move. Backward is the inverse, in the opposite order.
    cos, sin = math.cos(angle) / size, math.sin(angle) / size
    a, b, c, d = cos + slope * sin, sin - slope * cos, -sin, cos
    return [[a, b, -(a * x0 + b * y0)], [c, d, -(c * x0 + d * y0)]]


def draw_gains(seed: int, positions: Int64s, augment: Augment) -> npt.NDArray[np.float64]:
    """The factor of each position's intensities, of shape (len(positions),)."""
    return 1.0 + draw_uniform(seed, positions, GAIN_STREAM, 1)[:, 0] * augment.gain


def draw_crops(seed: int, positions: Int64s) -> npt.NDArray[np.float64]:
    """The draws for `crop_box`, of shape (len(positions), CROP_DRAWS)."""
    return draw_uniform(seed, positions, CROP_STREAM, CROP_DRAWS)


def crop_box(
    height: int, width: int, draws: npt.NDArray[np.float64], share: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(top, left, height, width), in pixels, of a random crop with an area of `share` of the picture's.

    After torchvision's RandomResizedCrop: the first of ten boxes that fits, else the largest centred box of an allowed
    ratio.
    """
    numbers = draws.tolist()
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for area_draw, ratio_draw in zip(numbers[:CROP_ATTEMPTS], numbers[CROP_ATTEMPTS : 2 * CROP_ATTEMPTS], strict=True):
        area = height * width * (share[0] + area_draw * (share[1] - share[0]))
        ratio = math.exp(low + ratio_draw * (high - low))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(numbers[-2] * (height - box_height + 1))
            left = int(numbers[-1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_width = min(width, round(height * CROP_RATIO[1]))
    box_height = min(height, round(width / CROP_RATIO[0]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width
