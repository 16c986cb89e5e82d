"""`data.augment`: what is done to a batch on the device, from what the host drew for each row.

Only sums and products of masks, so that every device records it: no `where`, no shape that depends on data. Erasing comes
before mixing, as in timm and DeiT: what is mixed in may be a picture with a hole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.runtime.reference.data import DeviceBatch
    from vitcore.runtime.runtime import Runtime

# Shapes: B batch, C channels, Y rows and X columns of the picture in pixels.


def augment(rt: Runtime, batch: DeviceBatch, do: str) -> DeviceBatch:
    """Mirror (`flip`), make a rectangle grey (`erase`), and mix with the neighbour (`mix`): with all of it, or with a
    rectangle of it; the loss then finds the neighbour's label as `partner` among the draws."""
    x_BCYX, draws, parts = batch.images, batch.draws, do.split("|")
    if "flip" in parts:
        flip_B111 = draws["flip"].to(x_BCYX.dtype)[:, None, None, None]
        x_BCYX = x_BCYX * (1 - flip_B111) + x_BCYX.flip(-1) * flip_B111
    if "erase" in parts:
        x_BCYX = x_BCYX * (1 - _inside(rt, draws["erase"], x_BCYX))
    if "mix" in parts:
        own_B1YX = draws["blend"][:, None, None, None] * (1 - _inside(rt, draws["box"], x_BCYX))
        x_BCYX = x_BCYX * own_B1YX + _neighbours(x_BCYX) * (1 - own_B1YX)
        draws = {**draws, "partner": _neighbours(batch.labels)}
    return batch._replace(images=x_BCYX, draws=draws)


def _inside(rt: Runtime, box_B4: Tensor, like_BCYX: Tensor) -> Tensor:
    """1 inside of each row's rectangle (top, left, bottom, right), else 0: (B, 1, Y, X)."""
    top, left, bottom, right = (box_B4[:, i, None] for i in range(4))
    rows_Y, columns_X = _places(rt, like_BCYX.shape[-2]), _places(rt, like_BCYX.shape[-1])
    row_BY = ((rows_Y >= top) & (rows_Y < bottom)).to(like_BCYX.dtype)
    column_BX = ((columns_X >= left) & (columns_X < right)).to(like_BCYX.dtype)
    return row_BY[:, None, :, None] * column_BX[:, None, None, :]


def _places(rt: Runtime, count: int) -> Tensor:
    """0 ... count - 1 as f32, made on the host once: `arange` on some recording devices loses memory each time."""
    if count not in rt.places:
        rt.places[count] = torch.arange(count, dtype=torch.float32).to(rt.device)
    return rt.places[count]


def _neighbours(rows_B: Tensor) -> Tensor:
    """Row 1 in place of row 0 and the other way round, and so on: positions differ in the last bit."""
    pairs = rows_B.reshape(-1, 2, *rows_B.shape[1:])
    return torch.stack([pairs[:, 1], pairs[:, 0]], 1).reshape(rows_B.shape)
