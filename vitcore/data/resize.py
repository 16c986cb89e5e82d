"""From a decoded picture to the model's size: which part, and the resize of that part alone, antialiased, in uint8."""

from __future__ import annotations

import math
import threading
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.places import crop_box
from vitcore.data.view import Interpolation, View

Pixels: TypeAlias = npt.NDArray[np.uint8]

# Half the width of the kernels, in pixels of whichever of the two grids is the coarser.
_SUPPORT: dict[Interpolation, float] = {"bilinear": 1.0, "bicubic": 2.0}
# An error of place of this many source pixels is taken as none, and this many pixels are computed and dropped at most to get
# there.
_CLOSE, _MOST_LEAD = 1 / 64, 32

# Bytes behind a resized picture that may be read and mean nothing.
_SLACK = 4
_threads = threading.local()

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


def resize_into(
    out_CHW: Tensor, image_HWC: Pixels, rows: Span, columns: Span, interpolation: Interpolation, orientation: int = 1
) -> None:
    """Resize the part of a picture of 1, 3 or 4 channels that the spans say, turn it upright, and write it where a batch wants
    it: grey as all channels, colours as luma for one channel, without the fourth."""
    part_HWC = image_HWC[rows.start : rows.stop, columns.start : columns.stop]
    if rows.whole and columns.whole and rows.step == columns.step == 1.0:
        planes: list[npt.NDArray[Any]] = [part_HWC[..., channel] for channel in range(min(3, part_HWC.shape[2]))]
    else:
        planes = _resized(part_HWC, rows, columns, interpolation)
    transposed, down, right = _TURNS[orientation]
    if transposed:
        planes = [plane.T for plane in planes]
    if down or right:
        planes = [plane[:: -1 if down else 1, :: -1 if right else 1] for plane in planes]
    if len(out_CHW) == 1 and len(planes) == 3:
        # ITU-R BT.601, in the fixed point of Pillow's convert("L").
        red, green, blue = (plane.astype(np.uint8).astype(np.uint32) for plane in planes)
        planes = [(red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16]
    for channel, out in enumerate(out_CHW.numpy()):  # by planes: twice as fast as one copy that permutes
        np.copyto(out, planes[min(channel, len(planes) - 1)], casting="unsafe")


def _resized(part_HWC: Pixels, rows: Span, columns: Span, interpolation: Interpolation) -> list[npt.NDArray[Any]]:
    """The part's channels at their new size, without a fourth, each (rows.made, columns.made); of four they are words, of
    which the lowest byte counts. They are the thread's scratch memory, good until the next picture."""
    channels = part_HWC.shape[2]
    height, width = rows.lead + rows.made, columns.lead + columns.made
    # Contiguous with the channels last: the resize of uint8 is several times faster so, with the same result. NumPy makes
    # the copy: torch would start a team of threads for it in every decoding thread. Writable, or torch warns. And torch has
    # to add the first axis, or it would not see the order of the others.
    image_1HWC = torch.from_numpy(np.require(part_HWC, requirements=["C", "W"])).unsqueeze(0)
    memory = _scratch(height * width * channels + _SLACK)
    made_HWC = memory[: height * width * channels].reshape(height, width, channels)
    resize = (
        torch.ops.aten._upsample_bicubic2d_aa if interpolation == "bicubic" else torch.ops.aten._upsample_bilinear2d_aa
    )
    resize.out(
        image_1HWC.permute(0, 3, 1, 2),
        (height, width),
        False,
        None if rows.whole else 1.0 / rows.step,
        None if columns.whole else 1.0 / columns.step,
        out=torch.from_numpy(made_HWC).unsqueeze(0).permute(0, 3, 1, 2),
    )
    if channels != 4:
        return [made_HWC[rows.lead :, columns.lead :, channel] for channel in range(channels)]
    # A byte of every four is not copied with vectors, but the lowest byte of words is. Those of the second channel are the
    # words that begin a byte later, the last of which ends in the slack.
    first = 4 * (rows.lead * width + columns.lead)
    shape, strides = (rows.made, columns.made), (4 * width, 4)
    return [np.ndarray(shape, "<u4", memory.data, first + channel, strides) for channel in range(3)]


def _scratch(size: int) -> Pixels:
    """`size` bytes of this thread's, the same each time: they are in its cache, and the system need not find any."""
    memory: Pixels | None = getattr(_threads, "memory", None)
    if memory is None or len(memory) < size:
        memory = _threads.memory = np.empty(size, np.uint8)
    return memory
