"""From stored pictures to the model's: against Pillow, and against the plain way of decoding all and resizing in float64."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import skimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from vitcore.data import decode as decoding
from vitcore.data import jpeg
from vitcore.data.decode import UnreadablePicture, decode, picture_into, read_file, resize
from vitcore.data.places import crop_box, draw_crops
from vitcore.data.resize import Window, resize_into, span
from vitcore.data.view import View

SHARE = (0.08, 1.0)
Pixels = npt.NDArray[np.uint8]


@lru_cache(maxsize=4)
def photograph(name: str, size: tuple[int, int] | None = None) -> Image.Image:
    """A photograph of scikit-image's, at a size in (width, height)."""
    image = Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB")
    return image if size is None else image.resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def fitted(stored: bytes | Pixels, view: View, draws: npt.NDArray[np.float64] | None = None) -> Tensor:
    out = torch.zeros((view.channels, *view.size), dtype=torch.uint8)
    picture_into(out, stored, view, draws, None if draws is None else SHARE)
    return out


def upright(data: bytes, mode: str = "RGB") -> Tensor:
    """As Pillow decodes it, (C, H, W)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert(mode)
    pixels = np.array(image)
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1)


def plain(image_CHW: Tensor, view: View, draws: npt.NDArray[np.float64] | None = None) -> Tensor:
    """The float reference: all of the picture, its crop, one resize in float64; for eval_resize crop, torchvision's two steps."""
    if draws is not None:
        top, left, height, width = crop_box(image_CHW.shape[1], image_CHW.shape[2], draws, SHARE)
        image = image_CHW[:, top : top + height, left : left + width].double()
    elif view.resize == "crop":
        image = image_CHW.double()
        mode = v2.InterpolationMode(view.interpolation)
        whole = v2.Resize(round(view.size[0] / view.crop_pct), interpolation=mode, antialias=True)(image)
        return v2.CenterCrop(view.size)(whole).clamp(0, 255)
    else:
        image = image_CHW.double()
    return F.interpolate(image[None], view.size, mode=view.interpolation, antialias=True)[0].clamp(0, 255)


def psnr(a: Tensor, b: Tensor) -> float:
    """In dB of the full range."""
    error = float((a.double() - b.double()).square().mean())
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


@pytest.fixture
def scales(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scales at which JPEGs are decoded from here on."""
    used: list[int] = []
    decode_top = jpeg.decode_top

    def noted(data: bytes, header: jpeg.Header, scale: int, *rest: Any) -> Pixels:
        used.append(scale)
        return decode_top(data, header, scale, *rest)

    monkeypatch.setattr(jpeg, "decode_top", noted)
    return used


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", ["rocket.jpg", "chelsea.png", "coffee.png", "retina.jpg"])
def test_crops_of_photographs_are_those_of_the_plain_way(name: str, interpolation: Any, scales: list[int]) -> None:
    data = encoded(photograph(name, (500, 375)), quality=90)
    whole = decode(data)
    draws = draw_crops(3, np.arange(8))
    for size in (224, 384):
        view = View(size=(size, size), interpolation=interpolation)
        for row in draws:
            assert psnr(fitted(data, view, row), plain(whole, view, row)) >= 55
    assert set(scales) == {1} and len(scales) == 16


@pytest.mark.parametrize("interpolation, progressive", [("bilinear", False), ("bicubic", True)])
@pytest.mark.parametrize("name", ["rocket.jpg", "coffee.png", "retina.jpg", "hubble_deep_field.jpg"])
def test_crops_of_large_photographs_are_decoded_smaller(
    name: str, interpolation: Any, progressive: bool, scales: list[int]
) -> None:
    # Odd sizes, so that the smaller picture does not end where the large one does.
    data = encoded(photograph(name, (2051, 1537)), quality=92, progressive=progressive)
    whole = decode(data)
    for size in (80, 224):
        view = View(size=(size, size), interpolation=interpolation)
        for row in draw_crops(5, np.arange(3)):
            assert psnr(fitted(data, view, row), plain(whole, view, row)) >= (38 if scales[-1] > 1 else 55)
    assert max(scales) >= 4


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (301, 299), (224, 224), (100, 90), (1600, 1100)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_centre_is_that_of_torchvisions_resize_and_center_crop(
    size: tuple[int, int], interpolation: Any, scales: list[int]
) -> None:
    data = encoded(photograph("coffee.png", size), quality=95)
    whole = decode(data)
    for side, pct in ((224, 0.875), (224, 1.0), (96, 0.9)):
        view = View(size=(side, side), interpolation=interpolation, resize="crop", crop_pct=pct)
        assert psnr(fitted(data, view), plain(whole, view)) >= (38 if scales[-1] > 1 else 48), (side, pct, scales[-1])
        # The same place to a small part of a pixel: any other is farther away.
        moved = torch.roll(plain(whole, view), 1, dims=2)
        assert psnr(fitted(data, view), moved) < 40


def test_the_whole_picture_is_squashed_by_default(scales: list[int]) -> None:
    data = encoded(photograph("rocket.jpg"), quality=95)
    for size, scale in (((160, 240), 2), ((240, 160), 1)):
        view = View(size=size)
        assert psnr(fitted(data, view), plain(decode(data), view)) >= (38 if scale > 1 else 55) and scales[-1] == scale


@pytest.mark.parametrize("name", ["astronaut.png", "hubble_deep_field.jpg"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_sharpest_picture_at_the_least_reduction_is_good_enough(
    name: str, interpolation: Any, scales: list[int]
) -> None:
    data = encoded(photograph(name, (240, 240)), quality=95)
    view = View(size=(96, 96), interpolation=interpolation)
    assert psnr(fitted(data, view), plain(decode(data), view)) >= 38 and scales == [2]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_rows_left_out_change_no_bit_of_the_others(subsampling: int, progressive: bool) -> None:
    """The colours of 4:2:0 are interpolated over the rows of blocks: one more row than is asked for is decoded."""
    data = encoded(photograph("coffee.png", (500, 375)), quality=90, subsampling=subsampling, progressive=progressive)
    header = jpeg.read_header(data)
    assert header is not None and header.block == (16 if subsampling == 2 else 8) and header.sequential != progressive
    for scale in (1, 2):
        whole = jpeg.decode_top(data, header, scale, header.height, channels=3)
        for bottom in (1, 15, 16, 17, 100, 191, 192, 193, 358, 359, 374, 375):
            top = jpeg.decode_top(data, header, scale, bottom, channels=3)
            assert (
                bottom <= len(top) * scale <= bottom + (header.block if not progressive else 3 * header.block) + scale
            )
            asked = bottom // scale
            assert (top[:asked] == whole[:asked]).all()
        if scale == 1:  # torchvision's, to the bit
            assert torch.equal(torch.from_numpy(whole).permute(2, 0, 1), decode(data))


def test_rows_left_out_take_no_time() -> None:
    """A count instead of a clock: the rows that come out are all that the decoder was told of."""
    for progressive in (False, True):
        data = encoded(photograph("coffee.png", (500, 375)), progressive=progressive)
        header = jpeg.read_header(data)
        assert header is not None and len(jpeg.decode_top(data, header, 1, 100, channels=3)) < 160


def test_four_channels_are_three_and_one_that_is_dropped() -> None:
    data, view = encoded(photograph("coffee.png", (100, 80))), View(size=(60, 90))
    header = jpeg.read_header(data)
    assert header is not None
    spans = [span(Window(0, length), made, length, 1, "bilinear") for length, made in ((80, 60), (100, 90))]
    outs = torch.zeros((2, 3, *view.size), dtype=torch.uint8)
    for out, channels in zip(outs, (3, 4)):
        pixels = jpeg.decode_top(data, header, 1, 80, channels)
        assert pixels.shape == (80, 100, channels)
        resize_into(out, pixels, spans[0], spans[1], "bilinear")
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], fitted(data, view))


def test_a_file_with_restart_markers_is_cut_too() -> None:
    data = encoded(photograph("coffee.png", (500, 375)), quality=90, restart_marker_rows=1)
    header = jpeg.read_header(data)
    assert header is not None
    top = jpeg.decode_top(data, header, 1, 100, channels=3)
    assert len(top) < 120 and (top[:100] == decode(data).permute(1, 2, 0).numpy()[:100]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("big", [False, True])
def test_every_orientation_is_turned_upright(orientation: int, big: bool, scales: list[int]) -> None:
    exif = Image.Exif()
    exif.endian = ">" if big else "<"
    exif[0x0100], exif[0x0112], exif[0x010F] = 7, orientation, "a camera"
    for size, side in (((200, 140), 64), ((700, 500), 64)):
        data = encoded(photograph("chelsea.png", size), quality=95, exif=exif)
        assert jpeg.read_header(data).orientation == orientation  # type: ignore[union-attr]
        whole = upright(data)
        assert whole.shape[1:] == (size[::-1] if orientation < 5 else size)
        assert psnr(decode(data), whole) > 45
        for view in (View(size=(side, side + 8)), View(size=(side, side), resize="crop", crop_pct=0.8)):
            assert psnr(fitted(data, view), plain(whole, view)) >= 38, view
        view = View(size=(side, side))
        for row in draw_crops(7, np.arange(4)):
            assert psnr(fitted(data, view, row), plain(whole, view, row)) >= 38, row
    assert set(scales) == {1, 2}


KINDS: dict[str, Callable[[Image.Image], bytes]] = {
    "grey": lambda p: encoded(p.convert("L"), quality=95),
    "CMYK": lambda p: encoded(p.convert("CMYK"), quality=95),
    "4:4:4": lambda p: encoded(p, quality=95, subsampling=0),
    "4:2:2": lambda p: encoded(p, quality=95, subsampling=1),
    "progressive": lambda p: encoded(p, quality=95, progressive=True),
    "RGB inside": lambda p: encoded(p, quality=95, keep_rgb=True),
    "palette": lambda p: encoded(p.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "grey PNG": lambda p: encoded(p.convert("L"), "PNG"),
    "bits": lambda p: encoded(p.convert("1"), "PNG"),
    "alpha": lambda p: encoded(Image.merge("RGBA", (*p.split(), p.convert("L"))), "PNG"),
    "grey alpha": lambda p: encoded(Image.merge("LA", (p.convert("L"), p.split()[0])), "PNG"),
    "GIF": lambda p: encoded(p, "GIF"),
    "WebP": lambda p: encoded(p, "WEBP", quality=95),
    "WebP alpha": lambda p: encoded(Image.merge("RGBA", (*p.split(), p.convert("L"))), "WEBP", lossless=True, exact=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_file_comes_out_as_pillow_has_it(kind: str, channels: int) -> None:
    data = KINDS[kind](photograph("chelsea.png", (150, 110)))
    whole = upright(data, "RGB" if channels == 3 else "L")
    for view in (View(size=(64, 48), channels=channels), View(size=(110, 150), channels=channels)):
        assert psnr(fitted(data, view), plain(whole, view)) >= 44, view
    view = View(size=(56, 56), channels=channels)
    for row in draw_crops(2, np.arange(4)):
        assert psnr(fitted(data, view, row), plain(whole, view, row)) >= 44, row


def test_ycck_comes_out_as_pillow_has_it() -> None:
    """Pillow writes no YCCK: the four inks of its CMYK file are declared to be that by Adobe's marker, and both decode it."""
    data = bytearray(encoded(photograph("chelsea.png", (150, 110)).convert("CMYK"), quality=95))
    at = data.index(b"Adobe") + 11
    assert data[at] == 0
    data[at] = 2
    view = View(size=(64, 48))
    whole = upright(bytes(data))
    assert psnr(fitted(bytes(data), view), plain(whole, view)) >= 40
    assert psnr(whole, upright(KINDS["CMYK"](photograph("chelsea.png", (150, 110))))) < 20  # it is another picture


@pytest.mark.parametrize("channels", [1, 3])
def test_of_16_bits_the_high_8_are_kept(channels: int) -> None:
    grey = np.asarray(photograph("chelsea.png", (60, 40)).convert("L"))
    noise = np.random.default_rng(0).integers(0, 256, grey.shape)
    data = encoded(Image.fromarray((grey.astype(np.uint16) << 8 | noise).astype(np.uint16)), "PNG")
    out = fitted(data, View(size=(40, 60), channels=channels))
    assert (out.numpy() == grey).all()


def test_arrays_are_fitted_like_files() -> None:
    whole = torch.from_numpy(np.array(photograph("coffee.png", (120, 90)))).permute(2, 0, 1)
    view, row = View(size=(32, 32)), draw_crops(1, np.arange(1))[0]
    for stored in (whole.numpy(), whole.contiguous().numpy()):
        assert psnr(fitted(stored, view, row), plain(whole, view, row)) >= 55
        assert psnr(fitted(stored, view), plain(whole, view)) >= 55
        assert torch.equal(fitted(stored, View(size=(90, 120))), whole)
    grey = np.array(photograph("coffee.png", (120, 90)).convert("L"))[None]
    assert torch.equal(fitted(grey, View(size=(90, 120))), torch.from_numpy(grey).repeat(3, 1, 1))
    assert torch.equal(fitted(grey, View(size=(90, 120), channels=1)), torch.from_numpy(grey))
    luma = np.asarray(Image.fromarray(np.asarray(whole.permute(1, 2, 0))).convert("L"))
    assert (fitted(whole.numpy(), View(size=(90, 120), channels=1)).numpy()[0] == luma).all()


def test_what_is_stored_may_be_read_only_and_nobody_is_warned() -> None:
    photo = photograph("chelsea.png", (150, 110))
    array = np.asarray(photo).transpose(2, 0, 1)
    array.setflags(write=False)
    before = array.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stored in (array, *(make(photo) for make in KINDS.values())):
            fitted(stored, View(size=(64, 48)))
        data = encoded(photo)
        assert torch.equal(fitted(memoryview(data), View(size=(64, 48))), fitted(data, View(size=(64, 48))))  # type: ignore[arg-type]
    assert (array == before).all()


def test_one_row_of_a_batch_is_written_and_no_other() -> None:
    batch = torch.full((3, 3, 40, 40), 7, dtype=torch.uint8).share_memory_()
    picture_into(batch[1], encoded(photograph("rocket.jpg")), View(size=(40, 40)))
    assert (batch[0] == 7).all() and (batch[2] == 7).all() and batch[1].float().std() > 10


def test_a_file_that_ends_too_early_is_refused_also_where_the_crop_ends_earlier() -> None:
    """Else it would depend on the draw whether a picture is bad."""
    for progressive in (False, True):
        data = encoded(photograph("rocket.jpg"), progressive=progressive)
        draws = np.zeros(22)
        draws[:10] = 0.01  # a small crop, at the top
        fitted(data, View(size=(32, 32)), draws)
        for length in (len(data) * 3 // 4, len(data) - 3):
            for stored in (data[:length], data[:length] + bytes(len(data) - length)):
                with pytest.raises(UnreadablePicture, match=r"^Image is incomplete or truncated$"):
                    fitted(stored, View(size=(32, 32)), draws)


def test_bytes_after_the_picture_are_ignored() -> None:
    data = encoded(photograph("rocket.jpg", (200, 100)))
    view = View(size=(50, 50))
    assert torch.equal(fitted(data + b"trailing" * 100, view), fitted(data, view))


def test_what_the_fast_decoder_refuses_is_decoded_by_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    data, view = encoded(photograph("rocket.jpg", (200, 100))), View(size=(50, 50))
    expected = plain(decode(data), view)

    def refuse(*_: Any) -> Pixels:
        raise ValueError("Unsupported")

    monkeypatch.setattr(jpeg, "decode_top", refuse)
    assert psnr(fitted(data, view), expected) >= 55


@pytest.mark.parametrize("most", [199 * 100, 200 * 100])
def test_the_size_is_judged_before_anything_is_decoded(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photograph("rocket.jpg", (200, 100)))
    monkeypatch.setattr(decoding, "MOST_PIXELS", most)
    if most < 200 * 100:
        monkeypatch.setattr(jpeg, "decode_top", None)
        with pytest.raises(UnreadablePicture, match=f"it has 20000 pixels, more than {most}"):
            fitted(data, View(size=(50, 50)))
    else:
        fitted(data, View(size=(50, 50)))


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(1, 3000), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)), made=st.integers(1, 400),
    scale=st.sampled_from([1, 2, 4, 8]), bleeds=st.booleans(), kind=st.sampled_from(["bilinear", "bicubic"]),
)  # fmt: skip
def test_a_span_lies_in_the_source_and_begins_where_the_window_does(
    length: int, cut: tuple[float, float], made: int, scale: int, bleeds: bool, kind: Any
) -> None:
    start = cut[0] * (length - 1)
    window = Window(start, max(1.0, cut[1] * (length - start)), bleeds)
    decoded = -(-length // scale)
    found = span(window, made, decoded, scale, kind)
    assert 0 <= found.start < found.stop <= max(decoded, found.start + 1) and found.lead >= 0 and found.made == made
    assert found.stop >= min(decoded, int(window.start / scale + found.step * made))
    # Half a decoded pixel at worst, where the window begins within the first few.
    assert abs(found.start + found.lead * found.step - window.start / scale) <= 0.5 + 1e-6
    whole = span(Window(math.floor(start), math.ceil(window.extent)), made, length, 1, kind)
    assert whole.lead == 0 and whole.start == math.floor(start)


def test_resize_and_read_file_are_what_other_verbs_use(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photograph("coffee.png")))
    whole = decode(read_file(tmp_path / "a.jpg"))
    assert whole.shape == (3, 400, 600) and whole.dtype == torch.uint8
    small = resize(whole, (50, 70), "bicubic")
    assert psnr(small, plain(whole, View(size=(50, 70), interpolation="bicubic"))) >= 55
