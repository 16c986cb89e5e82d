"""One file to one picture: decoding, cropping, resizing. Files are taken for hostile: a picture's size is read and
judged before memory for it is taken."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from vitcore.data.augment import crop_box
from vitcore.data.view import View
from vitcore.errors import VitcoreError

# Decoded, 537 MB. Pillow, whose limit it is, refuses larger ones as decompression bombs too.
MOST_PIXELS = 178_956_970
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


class UnreadablePicture(Exception):
    """A file that cannot be decoded; its text is the decoder's reason, one line."""


def picture_into(
    out_CHW: Tensor,
    stored: bytes | memoryview | npt.NDArray[np.uint8],
    view: View,
    draws: npt.NDArray[np.float64] | None = None,
    share: tuple[float, float] | None = None,
) -> None:
    """Fill `out_CHW`, uint8 of the view's shape, with a stored picture: a random crop of `share` of its area by the
    numbers `draws` (`vitcore.data.augment.draw_crops`), or without them the whole, fitted as the view says.

    `stored` is an encoded file, or a picture as uint8 (C, H, W). Grey, palette, CMYK and 16-bit files become RGB,
    transparency is dropped, the EXIF orientation is applied, and of an animation the first frame is taken. Raises
    UnreadablePicture.
    """
    image_CHW = torch.from_numpy(stored) if isinstance(stored, np.ndarray) else decode(stored)
    if draws is not None and share is not None:
        top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], draws, share)
        image_CHW = image_CHW[:, top : top + height, left : left + width]
    out_CHW.copy_(resize(image_CHW, view.size))


def read_file(path: str | Path) -> bytes:
    """The file's bytes; UnreadablePicture where it cannot be opened."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadablePicture(error.strerror or str(error)) from error


def resize(image_CHW: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 picture at another size in (rows, columns), bilinear and antialiased, whatever its aspect."""
    # The resize of uint8 is several times faster in channels_last, with the same result. NumPy makes the copy: torch
    # would start a team of threads for it in every decoding thread.
    image_1HWC = np.ascontiguousarray(image_CHW[None].permute(0, 2, 3, 1).numpy())
    image_1CHW = torch.from_numpy(image_1HWC).permute(0, 3, 1, 2)
    return F.interpolate(image_1CHW, size, mode="bilinear", antialias=True, align_corners=False)[0]


def decode(data: bytes | memoryview) -> Tensor:
    """An encoded file as uint8 RGB of shape (3, height, width); UnreadablePicture when it cannot be read, or is larger
    than `MOST_PIXELS`."""
    from PIL import Image

    torchvision = _torchvision_io()
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as header:
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
        encoded = torch.from_numpy(np.frombuffer(data, np.uint8))
        return torchvision.decode_jpeg(encoded, mode=torchvision.ImageReadMode.RGB, apply_exif_orientation=True)
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
