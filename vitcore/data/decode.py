"""One file to one picture: decoding, cropping, resizing."""

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.augment import crop_box
from vitcore.errors import VitcoreError


class UnreadablePicture(Exception):
    """A file that cannot be decoded; its text is the decoder's reason, one line."""


def read_picture(
    path: str,
    side: int | tuple[int, int],
    draws: npt.NDArray[np.float64] | None,
    share: tuple[float, float] | None,
) -> Tensor:
    """The picture as uint8 RGB of shape (3, side, side), or (3, rows, columns) of a pair: a random crop, or the whole
    without `draws`; resized.

    Grey, palette, CMYK and 16-bit files become RGB, transparency is dropped, the EXIF orientation is applied, and of an
    animation the first frame is taken. The aspect is not kept. Raises UnreadablePicture.
    """
    image_CHW = decode(path)
    if draws is not None and share is not None:
        top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], draws, share)
        image_CHW = image_CHW[:, top : top + height, left : left + width]
    return resize(image_CHW, (side, side) if isinstance(side, int) else side)


def resize(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 picture at another size in (rows, columns), bilinear and antialiased, whatever its aspect."""
    # The resize of uint8 is several times faster in channels_last, with the same result. NumPy makes the copy: torch
    # would start a team of threads for it in every decoding thread.
    image_1HWC = np.ascontiguousarray(image_CHW[None].permute(0, 2, 3, 1).numpy())
    image_1CHW = torch.from_numpy(image_1HWC).permute(0, 3, 1, 2)
    return F.interpolate(image_1CHW, size, mode="bilinear", antialias=True, align_corners=False)[0]


def decode(path: str) -> Tensor:
    """The file as uint8 RGB of shape (3, height, width); UnreadablePicture when it cannot be read."""
    io = _torchvision_io()
    try:
        image: Tensor = io.decode_image(io.read_file(path), mode=io.ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise UnreadablePicture(_reason(error)) from error
    if image.dtype == torch.uint16:
        # A 16-bit PNG: keep the high byte.
        image = (image.to(torch.int32) // 256).to(torch.uint8)
    return image if image.ndim == 3 else image[0]


def _torchvision_io() -> Any:
    # Here and not at the top: torchvision is needed, and its slow import paid for, only where pictures are decoded.
    try:
        import torchvision.io
    except ImportError as error:
        raise VitcoreError(f"folders of pictures need torchvision ({error}); pip install torchvision") from error
    return torchvision.io


def _reason(error: RuntimeError) -> str:
    """The decoder's own words: without the place in its source, and without the stack that some versions append."""
    line = str(error).splitlines()[0] if str(error) else "no reason given"
    return re.sub(r"^.*\.(?:cpp|h):\d+, ", "", line).rstrip(". ")
