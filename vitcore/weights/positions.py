"""Position embeddings at another grid of patches."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Resampling = Literal["bilinear", "bicubic"]

# Shapes: N patches, G rows and J columns of the grid, D width.


def resample(grid_1ND: Tensor, old: tuple[int, int], new: tuple[int, int], how: Resampling) -> Tensor:
    """The embedding of `old` = (rows, columns) patches, row by row and without the class token's, at `new`.

    "bilinear" puts corner on corner, as the original does for fine-tuning (google-research/vision_transformer,
    `load_pretrained`: scipy's zoom of order 1); computed in float64 and rounded once. "bicubic" is timm's
    (`resample_abs_pos_embed`): half-pixel centres, antialiased.
    """
    if old == new:
        return grid_1ND
    grid_1DGJ = grid_1ND.reshape(1, *old, -1).permute(0, 3, 1, 2)
    if how == "bilinear":
        out_1DGJ = F.interpolate(grid_1DGJ.double(), new, mode="bilinear", align_corners=True)
    else:
        out_1DGJ = F.interpolate(grid_1DGJ.float(), new, mode="bicubic", antialias=True)
    out_1ND: Tensor = out_1DGJ.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(torch.float32)
    return out_1ND
