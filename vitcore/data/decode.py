"""One file to one picture: decoding, cropping, resizing. Files are taken for hostile: a picture's size is read and
judged before memory for it is taken."""

import io
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.augment import crop_box
from vitcore.errors import VitcoreError

# Decoded, 537 MB. Pillow, whose limit it is, refuses larger ones as decompression bombs too.
MOST_PIXELS = 178_956_970
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


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
    """The file as uint8 RGB of shape (3, height, width); UnreadablePicture when it cannot be read, or is larger than
    `MOST_PIXELS`."""
    from PIL import Image

    torchvision = _torchvision_io()
    try:
        data: Tensor = torchvision.read_file(path)
    except RuntimeError as error:
        raise UnreadablePicture(_reason(error)) from error
    try:
        with Image.open(io.BytesIO(data.numpy().tobytes()), formats=_FORMATS) as header:
            if header.width * header.height > MOST_PIXELS:
                raise UnreadablePicture(f"it has {header.width * header.height} pixels, more than {MOST_PIXELS}")
            if header.format not in ("JPEG", "MPO"):  # MPO: JPEG with more pictures behind it
                return _by_pillow(header)
    except UnreadablePicture:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadablePicture(f"it is none of {', '.join(_FORMATS)}, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise UnreadablePicture(f"it has more than {MOST_PIXELS} pixels") from error
    except Exception as error:  # in a damaged file, whatever the parser stumbles over
        raise UnreadablePicture(_reason(error)) from error
    try:
        # Several times as many pictures are JPEG as all else, and this is 1.3 to 1.5 times as fast as Pillow.
        return torchvision.decode_jpeg(data, mode=torchvision.ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError as error:
        raise UnreadablePicture(_reason(error)) from error


def _by_pillow(image: Any) -> Tensor:
    """Any format but JPEG. torchvision's decoder of PNG crashes at damaged files, that of GIF decodes all frames, however
    many, and that of WebP ignores the orientation."""
    from PIL import ImageOps

    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits of grey: keep the high byte
        grey_YX = (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
        return torch.from_numpy(np.stack([grey_YX] * 3))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


def _torchvision_io() -> Any:
    # Here and not at the top: torchvision is needed, and its slow import paid for, only where pictures are decoded.
    try:
        import torchvision.io
    except ImportError as error:
        raise VitcoreError(f"folders of pictures need torchvision ({error}); pip install torchvision") from error
    return torchvision.io


def _reason(error: Exception) -> str:
    """The decoder's own words: without the place in its source, and without the stack that some versions append."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"^.*\.(?:cpp|h):\d+, ", "", line).rstrip(". ")
