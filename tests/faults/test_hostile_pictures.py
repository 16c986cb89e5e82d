"""Picture files that are damaged, or made to take the reader's memory: each is decoded or refused, never more."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitcore.data import decode as reader
from vitcore.data.decode import MOST_PIXELS, UnreadablePicture, decode, picture_into, read_file
from vitcore.data.view import View

FORMATS = ("JPEG", "PNG", "GIF", "WEBP")


def picture(seed: int = 0, size: tuple[int, int] = (24, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    picture().save(file, format=kind)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A PNG that announces a size, checksum and all, and brings a few bytes of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10_000)))
            + chunk(b"IEND", b""))  # fmt: skip


def jpeg(width: int, height: int) -> bytes:
    """A JPEG whose frame header announces a size."""
    data = bytearray(encoded("JPEG"))
    at = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data)
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(width: int, height: int) -> bytes:
    """A GIF whose screen, and first picture, have a size."""
    data = bytearray(encoded("GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def fitted(data: bytes) -> torch.Tensor:
    """A random crop of it for a model, which decodes plain JPEG in parts; a small one in the middle."""
    out, draws = torch.empty((3, 8, 8), dtype=torch.uint8), np.full(22, 0.3)
    picture_into(out, data, View(size=(8, 8)), draws, (0.3, 0.6))
    return out


@pytest.fixture
def warm() -> None:
    """The decoders are imported, whose memory is not a picture's."""
    for kind in FORMATS:
        decode(encoded(kind))
        fitted(encoded(kind))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("reads", [decode, fitted])
@pytest.mark.parametrize("make", [png, jpeg, gif])
def test_a_picture_too_large_is_refused_before_memory_is_taken(
    make: Callable[[int, int], bytes], reads: Callable[[bytes], torch.Tensor], tmp_path: Path
) -> None:
    (tmp_path / "bomb").write_bytes(make(65_000, 65_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadablePicture, match=f"more than {MOST_PIXELS}"):
        reads(read_file(str(tmp_path / "bomb")))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_size_just_over_the_limit_is_over_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(reader, "MOST_PIXELS", 24 * 32)
    assert decode(read_file(str(tmp_path / "a.png"))).shape == (3, 24, 32)
    monkeypatch.setattr(reader, "MOST_PIXELS", 24 * 32 - 1)
    with pytest.raises(UnreadablePicture, match="it has 768 pixels, more than 767"):
        decode(read_file(str(tmp_path / "a.png")))


@pytest.mark.usefixtures("warm")
def test_of_an_animation_no_more_than_the_first_picture_is_decoded(tmp_path: Path) -> None:
    """400 pictures of a megapixel each would be 1.2 GB."""
    first = Image.new("RGB", (1000, 1000), (200, 10, 10))
    others = [Image.new("P", (1000, 1000), i % 200) for i in range(400)]
    first.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "long.gif", save_all=True, append_images=others)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    frame = decode(read_file(str(tmp_path / "long.gif")))
    assert frame.shape == (3, 1000, 1000) and frame[:, 0, 0].tolist() == [200, 10, 10]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize("kind", FORMATS)
def test_every_truncation_is_decoded_or_refused(kind: str, tmp_path: Path) -> None:
    whole, path = encoded(kind), tmp_path / "picture"
    refused = 0
    for length in sorted({*range(0, 64), *range(64, len(whole), max(1, len(whole) // 64))}):
        path.write_bytes(whole[:length])
        data = read_file(str(path))
        try:
            assert decode(data).shape == (3, 24, 32)
        except UnreadablePicture as e:
            assert str(e) and "\n" not in str(e), repr(e)
            refused += 1
            with pytest.raises(UnreadablePicture):
                fitted(data)
        else:
            fitted(data)
    assert refused > 64
    path.write_bytes(whole)
    assert decode(read_file(str(path))).shape == (3, 24, 32)


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_a_format_that_is_not_read_is_said(kind: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(kind))
    with pytest.raises(UnreadablePicture, match="it is none of JPEG, PNG, WEBP, GIF, or its header is damaged"):
        decode(read_file(str(tmp_path / "a.jpg")))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/zero"), tmp_path / "nothing.jpg"):
        with pytest.raises(UnreadablePicture):
            decode(read_file(str(path)))


def fuzz(count: int, seed: int, folder: Path) -> None:
    """Mutants of each format: bytes changed, cut out, doubled, moved, a few at a time."""
    rng = np.random.default_rng(seed)
    wholes = {kind: encoded(kind) for kind in FORMATS}
    path, decoded = folder / "mutant", 0
    for i in range(count):
        data = bytearray(wholes[FORMATS[i % len(FORMATS)]])
        for _ in range(int(rng.integers(1, 5))):
            # Mostly in the header, where sizes are.
            at = int(rng.integers(0, min(len(data), 64 if rng.random() < 0.6 else len(data))))
            length = int(rng.integers(1, 9))
            what = int(rng.integers(0, 4))
            if what == 0:
                data[at : at + length] = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
            elif what == 1:
                del data[at : at + length]
            elif what == 2:
                data[at:at] = data[at : at + length]
            else:
                data[at] = (0, 1, 0x7F, 0x80, 0xFF)[int(rng.integers(0, 5))]
        path.write_bytes(data)
        for reads in (decode, fitted):
            try:
                image = reads(read_file(str(path)))
            except UnreadablePicture as e:
                assert str(e) and "\n" not in str(e), repr(e)
            else:
                assert image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3
                decoded += 1
    assert 0 < decoded < 2 * count


def test_mutants_are_decoded_or_refused(tmp_path: Path) -> None:
    """In a process of its own, so that a crash is one test's, and with a limit on memory."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from pathlib import Path; from test_hostile_pictures import fuzz; fuzz(2000, 11, Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
