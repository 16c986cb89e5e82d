"""Affine warps and gain of a batch of pictures, on the host.

Each sample of the result depends on its own picture and position alone, to the last bit: the arithmetic is element by
element, and never a matrix product whose order of summation follows the batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.order import Int64s
from vitcore.data.places import draw_affine, draw_gains

# Shapes: B batch, C channels, H height, W width.


def affine_batch(images_BCHW: Tensor, seed: int, positions: Int64s, augment: Augment) -> Tensor:
    """Rotate, scale, shear and move pictures in [0, 1], float32; what comes from outside is background, 0."""
    if images_BCHW.shape[0] == 0:
        return images_BCHW
    height, width = images_BCHW.shape[-2:]
    matrix_B23 = torch.from_numpy(draw_affine(seed, positions, augment))
    x_W = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y_H1 = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    (xx, xy, x0), (yx, yy, y0) = (matrix_B23[:, row, :, None, None].unbind(1) for row in (0, 1))
    # grid_sample's places run from -1 to 1 between the outer edges of the outer pixels.
    grid_BHW2 = torch.stack([(xx * x_W + xy * y_H1 + x0) * (2 / width), (yx * x_W + yy * y_H1 + y0) * (2 / height)], -1)
    return F.grid_sample(
        images_BCHW, grid_BHW2.to(images_BCHW.dtype), mode="bilinear", padding_mode="zeros", align_corners=False
    )


def gain_batch(images_BCHW: Tensor, seed: int, positions: Int64s, augment: Augment) -> Tensor:
    """Make pictures in [0, 1], float32, brighter: each times its own factor, 1 at most."""
    gains_B = torch.from_numpy(draw_gains(seed, positions, augment)).to(images_BCHW.dtype)
    return (images_BCHW * gains_B[:, None, None, None]).clamp(max=1.0)


def augment_reals(images_BCHW: Tensor, seed: int, positions: Int64s, augment: Augment) -> Tensor:
    """All that is done to pictures as real numbers in [0, 1]: the warp, then the gain."""
    if augment.warps:
        images_BCHW = affine_batch(images_BCHW, seed, positions, augment)
    return gain_batch(images_BCHW, seed, positions, augment) if augment.gain > 0.0 else images_BCHW
