"""From a decoded picture to the model's size: which part, and the resize of that part alone, antialiased, in uint8."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import crop_box
from vitcore.data.view import Interpolation, View

Pixels: TypeAlias = npt.NDArray[np.uint8]

# Half the width of the kernels, in pixels of whichever of the two grids is the coarser.
_SUPPORT: dict[Interpolation, float] = {"bilinear": 1.0, "bicubic": 2.0}
# An error of place of this many source pixels is taken as none, and this many pixels are computed and dropped at most to get
# there.
_CLOSE, _MOST_LEAD = 1 / 64, 32

# EXIF's orientations: whether the stored picture is to be transposed, and then mirrored upside down and left to right.
_TURNS = {1: (False, False, False), 2: (False, False, True), 3: (False, True, True), 4: (False, True, False),
          5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False)}  # fmt: skip


class Window(NamedTuple):
    """The part of one axis that is wanted: where it begins and how long it is, in pixels. bleeds: whether the resize reads
    beyond its ends, as when the whole picture is resized first and cut then."""

    start: float
    extent: float
    bleeds: bool = False


class Span(NamedTuple):
    """How one axis of a part is resized: `lead + made` pixels are made of the source's `start` to `stop` (outside), each
    `step` source pixels wide, and the first `lead` are dropped."""

    start: int
    stop: int
    made: int
    lead: int
    step: float

    @property
    def whole(self) -> bool:
        """Whether the source pixels are exactly those of the window, so that the resize needs no step."""
        return self.lead == 0 and abs(self.step * self.made - (self.stop - self.start)) < 1e-9


def wanted(
    view: View,
    height: int,
    width: int,
    draws: npt.NDArray[np.float64] | None = None,
    share: tuple[float, float] | None = None,
) -> tuple[Window, Window]:
    """The rows and columns of an upright picture that fill the view: a random crop, or the whole fitted as the view says."""
    if draws is not None and share is not None:
        top, left, box_height, box_width = crop_box(height, width, draws, share)
        return Window(top, box_height), Window(left, box_width)
    if view.resize == "squash":
        return Window(0, height), Window(0, width)
    # As torchvision's Resize of the shorter side and CenterCrop, down to the rounding.
    rows, columns = view.size
    side_rows, side_columns = round(rows / view.crop_pct), round(columns / view.crop_pct)
    if side_rows * width >= side_columns * height:
        resized = side_rows, max(columns, int(side_rows * width / height))
    else:
        resized = max(rows, int(side_columns * height / width)), side_columns
    return _centre(height, resized[0], rows), _centre(width, resized[1], columns)


def _centre(length: int, resized: int, count: int) -> Window:
    first = round((resized - count) / 2.0)
    return Window(first * length / resized, count * length / resized, bleeds=True)


def as_stored(rows: Window, columns: Window, height: int, width: int, orientation: int) -> tuple[Window, Window]:
    """The same part in a picture that is stored in one of EXIF's orientations; height and width are the upright's."""
    transposed, down, right = _TURNS[orientation]
    if down:
        rows = rows._replace(start=height - rows.start - rows.extent)
    if right:
        columns = columns._replace(start=width - columns.start - columns.extent)
    return (columns, rows) if transposed else (rows, columns)


def is_transposed(orientation: int) -> bool:
    """Whether rows are stored as columns."""
    return _TURNS[orientation][0]


def span(window: Window, count: int, length: int, scale: int, interpolation: Interpolation) -> Span:
    """How to make `count` pixels of a window of an axis that was decoded to `length` pixels, `scale` to one.

    A resize begins at a whole source pixel and the window between two. So some pixels more are made before it, as many as
    bring their beginning to a whole source pixel, or near enough.
    """
    step, origin = window.extent / scale / count, window.start / scale
    most = int(origin / step + 1e-6)
    reach = _SUPPORT[interpolation] * max(step, 1.0) if window.bleeds else 0.0
    least = min(most, math.ceil(reach / step))
    lead, error = least, math.inf
    for tried in range(least, min(most, least + _MOST_LEAD) + 1):
        place = origin - tried * step
        if abs(place - round(place)) < error - 1e-9:
            lead, error = tried, abs(place - round(place))
        if error <= _CLOSE:
            break
    start = max(0, round(origin - lead * step))
    stop = min(length, math.ceil(origin + step * count + reach - 1e-6))
    return Span(start, max(stop, start + 1), count, lead, step)


def resize_part(image_HWC: Pixels, rows: Span, columns: Span, interpolation: Interpolation) -> Pixels:
    """The part of a picture at its new size, (rows.made, columns.made, C). May share memory with the picture."""
    part_HWC = image_HWC[rows.start : rows.stop, columns.start : columns.stop]
    if rows.whole and columns.whole and rows.step == columns.step == 1.0:
        return part_HWC
    # Contiguous with the channels last: the resize of uint8 is several times faster so, with the same result. NumPy makes
    # the copy: torch would start a team of threads for it in every decoding thread. Writable, or torch warns.
    image_1CHW = torch.from_numpy(np.require(part_HWC, requirements=["C", "W"])).permute(2, 0, 1)[None]
    operator = (
        torch.ops.aten._upsample_bicubic2d_aa if interpolation == "bicubic" else torch.ops.aten._upsample_bilinear2d_aa
    )
    resized_1CHW = operator(
        image_1CHW,
        (rows.lead + rows.made, columns.lead + columns.made),
        False,
        None if rows.whole else 1.0 / rows.step,
        None if columns.whole else 1.0 / columns.step,
    )
    resized_HWC: Pixels = resized_1CHW[0].permute(1, 2, 0).numpy()
    return resized_HWC[rows.lead :, columns.lead :]


def write(out_CHW: Tensor, image_HWC: Pixels, orientation: int = 1) -> None:
    """Write a small picture, turned upright, where a batch wants it: grey as all channels, colours as luma for one."""
    transposed, down, right = _TURNS[orientation]
    if transposed:
        image_HWC = image_HWC.transpose(1, 0, 2)
    if down or right:
        image_HWC = image_HWC[:: -1 if down else 1, :: -1 if right else 1]
    if len(out_CHW) == 1 and image_HWC.shape[2] == 3:
        # ITU-R BT.601, in the fixed point of Pillow's convert("L").
        red, green, blue = (image_HWC[..., channel].astype(np.uint32) for channel in range(3))
        image_HWC = ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)[..., None]
    out = out_CHW.numpy()
    for channel in range(len(out)):  # three strided copies are twice as fast as one that permutes
        out[channel] = image_HWC[..., min(channel, image_HWC.shape[2] - 1)]
