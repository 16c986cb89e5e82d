"""JPEG, the format of most pictures: the header, and decoding no more of a file than is asked for.

The header is read here, strictly and in microseconds. What is not as plain as cameras and encoders write it (CMYK,
arithmetic coding, 12 bits, a damaged header) is None, and left to the decoders of `vitcore.data.decode`.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]

# Factors by which the decoder's inverse DCT makes a picture smaller, and how many times the model's size a crop must be for
# each. Factors between have no vector code and take longer than none. Sharp pictures stay above 38 dB of the plain way so: at
# exactly twice the size, with nothing left to resize, they were at 32; and a quarter saves little over a half, as most of
# the time goes into the entropy code.
SCALES = ((8, 16.0), (4, 8.0), (2, 2.5))

_START, _END = 0xD8, b"\xff\xd9"
_SCAN, _EXIF = 0xDA, 0xE1
# The end of a scan's header in a file that is not progressive.
_ALL_COEFFICIENTS = b"\0\x3f\0"
# Frames that are read here: baseline, extended sequential, progressive.
_FRAMES, _SEQUENTIAL = (0xC0, 0xC1, 0xC2), (0xC0, 0xC1)
# Segments that say nothing about size and place: tables of Huffman codes and quantisation, restart intervals, applications' and
# comments.
_SKIPPED = frozenset({0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE2, 0xF0)})
_ORIENTATION = 0x0112
_SPACES = {1: "GRAY", 3: "RGB", 4: "RGBX"}


class Header(NamedTuple):
    """What a JPEG says of itself.

    height, width: in pixels, as stored. grey: one component, else three. orientation: 1 .. 8, EXIF's. block: rows of pixels
    in a row of coded blocks. sequential: all components in one scan from top to bottom. height_at: where the height
    stands in the file. scan_at: where the picture's data begins.
    """

    height: int
    width: int
    grey: bool
    orientation: int
    block: int
    sequential: bool
    height_at: int
    scan_at: int


def read_header(data: bytes | memoryview) -> Header | None:
    """The header of a JPEG of 8 bits in grey or three components, or None for anything else.

    Bounded by the header's length, and independent of what is announced in it.
    """
    if len(data) < 4 or data[0] != 0xFF or data[1] != _START:
        return None
    at, end, orientation = 2, len(data) - 4, 1
    # The height's place, height, width, components, block, sequential.
    frame: tuple[int, int, int, int, int, bool] | None = None
    while at < end:
        if data[at] != 0xFF:
            return None
        kind = data[at + 1]
        if kind == 0xFF:  # a byte of filling
            at += 1
            continue
        length = data[at + 2] << 8 | data[at + 3]
        body, following = at + 4, at + 2 + length
        if length < 2 or following > end:
            return None
        if kind in _SKIPPED:
            at = following
        elif kind in _FRAMES:
            if frame is not None or length < 8 or data[body] != 8:
                return None
            height, width = data[body + 1] << 8 | data[body + 2], data[body + 3] << 8 | data[body + 4]
            components = data[body + 5]
            if length != 8 + 3 * components or components not in (1, 3) or not height or not width:
                return None
            block = 8 * max(data[body + 7 + 3 * i] & 15 for i in range(components))  # by the vertical sampling factors
            if not block:
                return None
            frame = (body + 1, height, width, components, block, kind in _SEQUENTIAL)
            at = following
        elif kind == _EXIF:
            if orientation == 1 and length >= 16 and bytes(data[body : body + 6]) == b"Exif\0\0":
                orientation = _orientation(data[body + 6 : following])
            at = following
        elif kind == _SCAN:
            if frame is None:
                return None
            height_at, height, width, components, block, sequential = frame
            if sequential and bytes(data[following - 3 : following]) != _ALL_COEFFICIENTS:
                return None  # a scan of a progressive file, of which this decoder would show the first and say nothing
            sequential = sequential and data[body] == components
            return Header(height, width, components == 1, orientation, block, sequential, height_at, following)
        else:  # another kind of frame, or nothing that belongs there
            return None
    return None


def is_whole(data: bytes | memoryview, header: Header) -> bool:
    """Whether the marker of the picture's end is there. Truncated files lack it; in the coded data it cannot occur."""
    # It is the last thing in nearly every file, so look there before searching.
    return _END in bytes(data[max(header.scan_at, len(data) - 64) :]) or _END in bytes(data[header.scan_at :])


def decode_top(data: bytes | memoryview, header: Header, scale: int, bottom: int, channels: int) -> Pixels:
    """The picture from its first row to at least row `bottom` (outside), both as stored, each side divided by `scale` (1
    or one of SCALES) and rounded up; (rows, columns, channels). The rows below are not decoded. channels: 1 is grey, 3 are
    colours, and 4 are colours and a byte that means nothing, for those who want a pixel in a machine word.

    `data` must be whole (`is_whole`). Raises ValueError with the decoder's words.
    """
    import simplejpeg

    file: bytes | bytearray | memoryview = data
    # The decoder stops each scan after as many rows as the header announces, and looks for the next marker; what is below, a
    # fifth of a picture for random crops, costs next to nothing. The colours of a row of blocks reach into the next, and
    # what smooths unfinished progressive files reaches over two: with these more, no bit of the rows asked for changes.
    rows = min(header.height, (bottom // header.block + (1 if header.sequential else 3)) * header.block)
    if rows < header.height:
        file = bytearray(data)
        file[header.height_at : header.height_at + 2] = rows.to_bytes(2, "big")
    shape = (-(-rows // scale), -(-header.width // scale), channels)
    # Not strict: it would refuse what comes after the last row, and what other decoders only warn of.
    pixels: Pixels = simplejpeg.decode_jpeg(
        file, _SPACES[channels], min_height=shape[0], min_width=shape[1], strict=False
    )
    if pixels.shape != shape:
        raise ValueError(f"it was decoded to {pixels.shape} and announces {shape}")
    return pixels


def _orientation(tiff: bytes | memoryview) -> int:
    """The orientation in an EXIF block, 1 where it has none or is damaged."""
    order = bytes(tiff[:4])
    if order == b"II*\0":
        big = False
    elif order == b"MM\0*":
        big = True
    else:
        return 1

    def number(at: int, count: int) -> int:
        return int.from_bytes(tiff[at : at + count], "big" if big else "little")

    first = number(4, 4)
    if first + 2 > len(tiff):
        return 1
    for entry in range(first + 2, min(first + 2 + 12 * number(first, 2), len(tiff) - 11), 12):
        if number(entry, 2) == _ORIENTATION:
            value = number(entry + 8, 2)
            return value if number(entry + 2, 2) == 3 and 1 <= value <= 8 else 1
    return 1
