"""Picture files with faults, of many kinds, drawn from a seed: damaged, mislabelled, hostile, and odd but whole.

Each kind says whether such a file can be read ("yes"), cannot ("no"), or whether it depends on the draw ("depends"); there
`can_be_read` asks the libraries themselves, without vitcore.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageCms

Rng = np.random.Generator
Reads = Literal["yes", "no", "depends"]


@dataclass(frozen=True)
class Kind:
    """One kind of fault: what such a file is called, and its bytes. `make` gives None where there are none."""

    name: str
    reads: Reads
    ending: str
    make: Callable[[Rng], bytes | None]


KINDS: list[Kind] = []


def kind(reads: Reads, *endings: str) -> Callable[[Callable[..., bytes | None]], Any]:
    """Enter a function as a kind; with several endings as one for each, called with the format's name."""

    def enter(make: Callable[..., bytes | None]) -> Any:
        for ending in endings:
            format_ = {"jpg": "JPEG"}.get(ending, ending.upper())

            def bound(rng: Rng, make: Any = make, format_: str = format_) -> bytes | None:
                return make(rng, format_) if len(endings) > 1 else make(rng)

            name = make.__name__ + (f"_{ending}" if len(endings) > 1 else "")
            KINDS.append(Kind(name, reads, f".{ending}", bound))
        return make

    return enter


def picture(rng: Rng, mode: str = "RGB", size: tuple[int, int] | None = None) -> Image.Image:
    """A random picture, smooth enough to be compressed."""
    rows, columns = size or tuple(rng.integers(16, 64, 2))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((int(columns), int(rows)), Image.Resampling.BILINEAR).convert(mode)


def saved(image: Image.Image, format_: str = "JPEG", **options: Any) -> bytes:
    """The picture as a file."""
    file = io.BytesIO()
    image.save(file, format=format_, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, raw: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG of raw lines; the header may announce what it likes."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def segment(data: bytes, marker: int, payload: bytes) -> bytes:
    """A JPEG with one more segment at its start."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload + data[2:]


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def frame_header(data: bytes) -> int:
    """Where a JPEG's frame header begins."""
    return next(data.index(m) for m in (b"\xff\xc0", b"\xff\xc2") if m in data)


# ---- whole, however odd ----


@kind("yes", "jpg", "png", "webp", "gif")
def whole(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), format_)


@kind("yes", "jpg", "png", "webp", "gif")
def one_pixel(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng, size=(1, 1)), format_)


@kind("yes", "jpg", "webp", "png")
def mislabelled(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), {"JPEG": "PNG", "WEBP": "GIF", "PNG": "JPEG"}[format_])


@kind("yes", "png", "webp", "gif")
def animated(rng: Rng, format_: str) -> bytes:
    size = (24, 31)
    others = [picture(rng, size=size) for _ in range(5)]
    return saved(picture(rng, size=size), format_, save_all=True, append_images=others, duration=40)


@kind("yes", "jpg")
def several_pictures_in_one(rng: Rng) -> bytes:
    return saved(picture(rng), "MPO", save_all=True, append_images=[picture(rng)])


@kind("yes", "jpg")
def progressive(rng: Rng) -> bytes:
    return saved(picture(rng), progressive=True)


@kind("yes", "jpg")
def cmyk(rng: Rng) -> bytes:
    return saved(picture(rng, "CMYK"))


@kind("yes", "jpg")
def ycck(rng: Rng) -> bytes:
    data = saved(picture(rng, "CMYK"))
    return patched(data, data.index(b"Adobe") + 11, b"\x02")


@kind("yes", "jpg")
def grey(rng: Rng) -> bytes:
    return saved(picture(rng, "L"))


@kind("yes", "jpg", "png", "webp")
def colour_profile(rng: Rng, format_: str) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return saved(picture(rng), format_, icc_profile=profile)


@kind("yes", "jpg", "png", "webp")
def broken_colour_profile(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), format_, icc_profile=rng.bytes(int(rng.integers(1, 3000))))


@kind("yes", "png")
def profile_that_does_not_unpack(rng: Rng) -> bytes:
    raw = b"".join(b"\0" + rng.bytes(30) for _ in range(10))
    return png(10, 10, raw, extra=chunk(b"iCCP", b"name\0\0" + rng.bytes(50)))


@kind("yes", "png")
def sixteen_bits_of_grey(rng: Rng) -> bytes:
    return saved(Image.fromarray(rng.integers(0, 65536, (20, 30), dtype=np.uint16)), "PNG")


@kind("yes", "png")
def sixteen_bits_of_colour(rng: Rng) -> bytes:
    raw = b"".join(b"\0" + rng.bytes(6 * 12) for _ in range(9))
    return png(12, 9, raw, depth=16)


@kind("yes", "png")
def palette_with_transparency(rng: Rng) -> bytes:
    return saved(picture(rng).convert("P"), "PNG", transparency=bytes(rng.integers(0, 256, 200, dtype=np.uint8)))


@kind("yes", "png", "webp")
def transparent(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng, "RGBA"), format_)


@kind("yes", "png")
def grey_with_transparency(rng: Rng) -> bytes:
    return saved(picture(rng, "LA"), "PNG")


@kind("yes", "png")
def black_and_white(rng: Rng) -> bytes:
    return saved(picture(rng, "1"), "PNG")


@kind("yes", "jpg")
def as_wide_as_a_jpeg_can_be(rng: Rng) -> bytes:
    return saved(picture(rng, size=(1, 65500)))


@kind("yes", "jpg")
def as_high_as_a_jpeg_can_be(rng: Rng) -> bytes:
    return saved(picture(rng, size=(65500, 1)))


@kind("yes", "png")
def large_and_white(rng: Rng) -> bytes:
    return png(3000, 3000, (b"\0" + bytes([255]) * 375) * 3000, depth=1, colour=0)


@kind("yes", "jpg")
def long_comments(rng: Rng) -> bytes:
    data = saved(picture(rng))
    for _ in range(8):
        data = segment(data, 0xFE, rng.bytes(65_000))
    return data


@kind("yes", "jpg")
def more_behind_its_end(rng: Rng) -> bytes:
    return saved(picture(rng)) + rng.bytes(int(rng.integers(1, 2000)))


@kind("yes", "jpg")
def turned(rng: Rng) -> bytes:
    return segment(saved(picture(rng)), 0xE1, exif(int(rng.integers(1, 9))))


def exif(orientation: int, type_: int = 3, count: int = 1, offset: int = 8, following: int = 0) -> bytes:
    entry = struct.pack("<HHIHH", 0x0112, type_, count, orientation & 0xFFFF, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", offset, 1) + entry + struct.pack("<I", following)


def hostile_exif(rng: Rng) -> bytes:
    """One of several: no such orientation, of no such type, counts and offsets beyond the file, loops, cut short."""
    choices = (
        exif(int(rng.choice([0, 9, 255, 65535]))),
        exif(6, type_=int(rng.choice([0, 2, 4, 7, 12, 99]))),
        exif(6, count=int(rng.choice([0, 2, 0xFFFF, 0xFFFFFFFF]))),
        exif(6, offset=int(rng.choice([0, 1, 9, 0x7FFFFFFF, 0xFFFFFFFF]))),
        exif(6, following=int(rng.choice([8, 1, 0xFFFFFFF0]))),
        patched(exif(6), 14, b"\xff\xff"),
        exif(6)[: int(rng.integers(0, 30))],
        b"Exif\0\0" + rng.bytes(40),
    )
    return choices[int(rng.integers(len(choices)))]


@kind("yes", "jpg")
def turned_by_nonsense(rng: Rng) -> bytes:
    return segment(saved(picture(rng)), 0xE1, hostile_exif(rng))


@kind("yes", "png", "webp")
def turned_by_nonsense_elsewhere(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), format_, exif=hostile_exif(rng))


# ---- beyond reading ----


@kind("no", "jpg", "png", "webp", "gif")
def empty(rng: Rng, format_: str) -> bytes:
    return b""


@kind("no", "jpg", "png")
def zeros(rng: Rng, format_: str) -> bytes:
    return bytes(int(rng.integers(1, 5000)))


@kind("no", "jpg", "png")
def noise(rng: Rng, format_: str) -> bytes:
    return b"\0" + rng.bytes(int(rng.integers(1, 5000)))


@kind("no", "jpg", "png", "gif")
def text(rng: Rng, format_: str) -> bytes:
    return (b"<!DOCTYPE html><title>404 Not Found</title>", b"version https://git-lfs.github.com/spec/v1\n")[
        int(rng.integers(2))
    ]


@kind("no", "jpg", "png")
def another_format(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), ("BMP", "TIFF", "PPM")[int(rng.integers(3))])


@kind("no", "jpg", "png", "webp", "gif")
def a_few_bytes(rng: Rng, format_: str) -> bytes:
    return saved(picture(rng), format_)[: int(rng.integers(1, 13))]


@kind("no", "jpg")
def more_before_its_start(rng: Rng) -> bytes:
    return b"\0\0" + saved(picture(rng))


@kind("no", "png")
def announces_gigapixels(rng: Rng) -> bytes:
    side = int(rng.integers(20_000, 2**31 - 1))
    return png(side, side, bytes(10_000))


@kind("no", "jpg")
def announces_gigapixels_too(rng: Rng) -> bytes:
    data = saved(picture(rng))
    return patched(data, frame_header(data) + 5, struct.pack(">HH", 65535, 65535))


@kind("no", "gif")
def announces_gigapixels_as_well(rng: Rng) -> bytes:
    return patched(saved(picture(rng), "GIF"), 6, struct.pack("<HH", 65535, 65535))


@kind("no", "png")
def gigapixels_of_zeros(rng: Rng) -> bytes:
    """Not only announced: lines of 30,000 pixels, all there, in 60 kB."""
    return png(30_000, 30_000, bytes(60_000_000), depth=1, colour=0)


@kind("no", "png")
def no_pixels(rng: Rng) -> bytes:
    return png(*((0, 9), (9, 0), (0, 0))[int(rng.integers(3))], b"")


@kind("no", "jpg")
def no_columns(rng: Rng) -> bytes:
    data = saved(picture(rng))
    return patched(data, frame_header(data) + 7, b"\0\0")


@kind("no", "png")
def wrong_checksum_of_the_header(rng: Rng) -> bytes:
    return patched(saved(picture(rng), "PNG"), 29, rng.bytes(4))


@kind("no", "jpg")
def no_file(rng: Rng) -> None:
    """A link to nothing, or a pipe that nobody writes to."""


# ---- it depends ----


@kind("depends", "jpg", "png", "webp", "gif")
def cut_off(rng: Rng, format_: str) -> bytes:
    data = saved(picture(rng), format_)
    return data[: int(rng.integers(13, len(data)))]


@kind("depends", "jpg", "png", "webp", "gif")
def flipped_bits(rng: Rng, format_: str) -> bytes:
    data = np.frombuffer(saved(picture(rng), format_), np.uint8).copy()
    for _ in range(int(rng.integers(1, 20))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data.tobytes()


@kind("depends", "jpg", "png")
def a_hole(rng: Rng, format_: str) -> bytes:
    data = saved(picture(rng), format_)
    start = int(rng.integers(2, len(data)))
    return data[:start] + data[start + int(rng.integers(1, 200)) :]


@kind("depends", "png")
def wrong_checksum_of_the_pixels(rng: Rng) -> bytes:
    data = saved(picture(rng), "PNG")
    return patched(data, len(data) - 16, rng.bytes(4))


@kind("depends", "jpg")
def another_coding(rng: Rng) -> bytes:
    """Headers of lossless, arithmetic and other codings over data that are not."""
    data = saved(picture(rng), progressive=bool(rng.integers(2)))
    return patched(data, frame_header(data) + 1, bytes([int(rng.choice([0xC1, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB]))]))


@kind("depends", "jpg")
def another_depth(rng: Rng) -> bytes:
    data = saved(picture(rng))
    return patched(data, frame_header(data) + 4, bytes([int(rng.choice([0, 4, 12, 16]))]))


@kind("depends", "jpg")
def no_rows(rng: Rng) -> bytes:
    data = saved(picture(rng))
    return patched(data, frame_header(data) + 5, b"\0\0")


@kind("depends", "png")
def text_that_unpacks_to_much(rng: Rng) -> bytes:
    raw = b"".join(b"\0" + rng.bytes(30) for _ in range(10))
    return png(10, 10, raw, extra=chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000))))


@kind("depends", "gif")
def no_screen(rng: Rng) -> bytes:
    return patched(saved(picture(rng), "GIF"), 6, bytes(4))


# ---- a folder of them, and the judge ----


def can_be_read(data: bytes) -> bool:
    """What the libraries say: torchvision of what Pillow takes for JPEG, Pillow of all else; the first picture whole."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP", "GIF")) as image:
            if image.width * image.height > 178_956_970:
                return False
            if image.format not in ("JPEG", "MPO"):
                image.load()
                return True
    except Exception:
        return False
    import torch
    from torchvision.io import ImageReadMode, decode_image

    try:
        decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        return False
    return True


def write(folder: Path, files: range, good: int, seed: int, classes: tuple[str, ...] = ("cat", "dog")) -> set[str]:
    """Write files by number, the kinds in turn, and behind them some that are as they should be, into one folder a class;
    the paths below `folder` of those that cannot be read."""
    unreadable = set()
    for i in range(files.start, files.stop + good):
        each, rng = KINDS[i % len(KINDS) if i in files else i % 4], np.random.default_rng([seed, i])
        path = folder / classes[i // len(KINDS) % 2 ^ i % 2] / f"{i:05d}-{each.name}{each.ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        data = each.make(rng)
        if data is None and i // len(KINDS) % 2:
            os.mkfifo(path)
        elif data is None:
            path.symlink_to("nothing")
        else:
            path.write_bytes(data)
        if each.reads == "no" or (each.reads == "depends" and not can_be_read(data or b"")):
            unreadable.add(str(path.relative_to(folder)))
    return unreadable
