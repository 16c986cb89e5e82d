"""One file to one picture: decoding, cropping, resizing. Files are taken for hostile: a picture's size is read and
judged before memory for it is taken.

Plain JPEG goes the fast way: no more of it is decoded than the model's picture needs (`vitcore.data.jpeg`), no more of
that is resized (`vitcore.data.resize`). Everything else is decoded whole by torchvision or Pillow, as `decode` does.
"""

import io
import os
import re
import stat
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data import jpeg
from vitcore.data.resize import as_stored, is_transposed, resize_into, span, wanted
from vitcore.data.view import Interpolation, View
from vitcore.errors import VitcoreError

# Decoded, 537 MB. Pillow, whose limit it is, refuses larger ones as decompression bombs too.
MOST_PIXELS = 178_956_970
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
# Opening does not wait for the other end of a pipe. Not every system has the second flag, and only one the third.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


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

    `stored` is an encoded file, or a picture as uint8 (C, H, W), C 1 or 3. Palette, CMYK and 16-bit files become RGB, grey is
    repeated for three channels and colours become luma for one, transparency is dropped, the EXIF orientation is
    applied, and of an animation the first frame is taken. Raises UnreadablePicture.
    """
    if isinstance(stored, np.ndarray):
        image_HWC = stored.transpose(1, 2, 0)
    else:
        header = jpeg.read_header(stored)
        if header is not None and _jpeg_into(out_CHW, stored, header, view, draws, share):
            return
        image_HWC = decode(stored).permute(1, 2, 0).numpy()
    height, width = image_HWC.shape[:2]
    windows = wanted(view, height, width, draws, share)
    rows, columns = (
        span(window, count, length, 1, view.interpolation)
        for window, count, length in zip(windows, view.size, (height, width))
    )
    resize_into(out_CHW, image_HWC, rows, columns, view.interpolation)


def _jpeg_into(
    out_CHW: Tensor,
    data: bytes | memoryview,
    header: jpeg.Header,
    view: View,
    draws: npt.NDArray[np.float64] | None,
    share: tuple[float, float] | None,
) -> bool:
    """`picture_into` of a plain JPEG; False where its decoder refuses it, and the others are to judge. What is cut out is
    found upright, then looked for in the picture as it is stored, and turned when it is small."""
    _check_size(header.width * header.height)
    if not jpeg.is_whole(data, header):
        raise UnreadablePicture("Image is incomplete or truncated")
    size, upright = view.size, (header.height, header.width)
    if is_transposed(header.orientation):
        size, upright = size[::-1], upright[::-1]
    windows = as_stored(*wanted(view, *upright, draws, share), *upright, header.orientation)
    fits = min(window.extent / count for window, count in zip(windows, size))
    scale = next((scale for scale, least in jpeg.SCALES if fits >= least), 1)
    rows, columns = (
        span(window, count, -(-length // scale), scale, view.interpolation)
        for window, count, length in zip(windows, size, (header.height, header.width))
    )
    channels = 1 if header.grey or view.channels == 1 else 3
    # Four channels take a little longer to decode, and are resized and taken apart in less time: a gain where what is made is
    # not small beside what is decoded.
    if channels == 3 and 2 * rows.made * columns.made * scale**2 > rows.stop * scale * header.width:
        channels = 4
    try:
        image_HWC = jpeg.decode_top(data, header, scale, rows.stop * scale, channels)
    except ValueError:
        return False
    resize_into(out_CHW, image_HWC, rows, columns, view.interpolation, header.orientation)
    return True


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes; UnreadablePicture where it cannot be opened, or is no file: a pipe would be waited for, and a device
    has no end."""
    try:
        descriptor = os.open(path, _READ)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadablePicture("it is no regular file")
            # One call for nearly every file; it may return less than is asked for.
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size - len(data))):
                data += more
            return data
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnreadablePicture(error.strerror or str(error)) from error


def resize(image_CHW: Tensor, size: tuple[int, int], interpolation: Interpolation = "bilinear") -> Tensor:
    """A uint8 picture at another size in (rows, columns), antialiased, whatever its aspect."""
    resized_CHW = torch.empty((len(image_CHW), *size), dtype=torch.uint8)
    picture_into(resized_CHW, image_CHW.numpy(), View(size=size, channels=len(image_CHW), interpolation=interpolation))
    return resized_CHW


def decode(data: bytes | memoryview) -> Tensor:
    """An encoded file as uint8 RGB of shape (3, height, width), upright; UnreadablePicture when it cannot be read, or is
    larger than `MOST_PIXELS`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as header:
            _check_size(header.width * header.height)
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
    decode_jpeg = _torchvision_jpeg()
    try:
        # A copy of the file, as torch warns of memory that may not be written. RGB, turned upright.
        image_CHW: Tensor = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 3, True)
        return image_CHW
    except RuntimeError as error:
        raise UnreadablePicture(_reason(error)) from error


def _check_size(pixels: int) -> None:
    if pixels > MOST_PIXELS:
        raise UnreadablePicture(f"it has {pixels} pixels, more than {MOST_PIXELS}")


def _by_pillow(image: Any) -> Tensor:
    """Any format but JPEG. torchvision's decoder of PNG crashes at damaged files, that of GIF decodes all frames, however
    many, and that of WebP ignores the orientation."""
    from PIL import ImageOps

    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # the pixels are good, and what says how to turn them is not: as with JPEG, they stay as they are
        upright = image
    if upright.mode.startswith("I"):  # 16 bits of grey: keep the high byte
        grey_YX = (np.asarray(upright).astype(np.int64) >> 8).astype(np.uint8)
        return torch.from_numpy(np.stack([grey_YX] * 3))
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


def _torchvision_jpeg() -> Callable[[Tensor, int, bool], Tensor]:
    # Here and not at the top: torchvision is needed, and its slow import paid for, only where pictures are decoded.
    try:
        import torchvision.io  # noqa: F401  (it loads the operators)

        # The operator itself: the function around it announces in every process that it will be removed.
        operator: Callable[[Tensor, int, bool], Tensor] = torch.ops.image.decode_jpeg
    except (ImportError, AttributeError) as error:
        raise VitcoreError(f"this JPEG needs torchvision's decoder ({error}); pip install torchvision") from error
    return operator


def _reason(error: Exception) -> str:
    """The decoder's own words: without the place in its source, and without the stack that some versions append."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return re.sub(r"^.*\.(?:cpp|h):\d+, ", "", line).rstrip(". ")
