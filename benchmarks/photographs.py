"""The pictures that the input benchmark reads: real photographs, cut and resized by a seeded generator.

Photographs are taken from the first of these that has some: the folder that VITCORE_PHOTOS names; two Debian packages of
wallpapers (27 camera JPEGs of 1.3 to 16 megapixels; fetched, unpacked and thrown away), not in CI; those that scikit-image
carries, enlarged to camera size with grain, which then are no camera's own files.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PACKAGES = ("lomiri-wallpapers-16.04", "mate-backgrounds")
BICUBIC = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Corpus:
    """A tree of train/ and val/ with JPEGs in classes, and what it is, in words."""

    root: Path
    what: str

    @property
    def files(self) -> list[Path]:
        """The training pictures."""
        return sorted((self.root / "train").glob("*/*.jpg"))


def find_photographs(folder: Path) -> tuple[list[Path], str]:
    """Files, and where they are from."""
    named = os.environ.get("VITCORE_PHOTOS")
    if named:
        return sorted(Path(named).rglob("*.jpg")), named
    if not os.environ.get("CI"):
        try:
            for command in (
                ["apt-get", "download", *PACKAGES],
                *(["sh", "-c", f"dpkg-deb -x {p}_*.deb x"] for p in PACKAGES),
            ):
                subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
            backgrounds = folder / "x" / "usr" / "share" / "backgrounds"
            found = [*backgrounds.glob("*.jpg"), *(backgrounds / "mate" / "nature").glob("*.jpg")]
            return sorted(found), " and ".join(PACKAGES)
        except (OSError, subprocess.SubprocessError):
            pass
    import skimage

    data = Path(skimage.__file__).parent / "data"
    names = ("rocket.jpg", "retina.jpg", "hubble_deep_field.jpg", "astronaut.png", "coffee.png", "chelsea.png")
    return [data / name for name in names], "scikit-image"


def small(photographs: list[Path], source: str, folder: Path, count: int, quality: int, grain: float) -> Corpus:
    """`count` pictures of 500x375: boxes of 35 to 100 % of a photograph's width, with grain, as ImageNet's files are."""
    rng, sizes = np.random.default_rng(0), []
    opened = [Image.open(path).convert("RGB") for path in photographs]
    for i in range(count):
        image = opened[i % len(opened)]
        width = min(image.width * rng.uniform(0.35, 1.0), image.height * 4 / 3)
        left, top = (image.width - width) * rng.random(), (image.height - width * 3 / 4) * rng.random()
        cut = image.resize((500, 375), BICUBIC, box=(left, top, left + width, top + width * 3 / 4))
        sizes.append(_save(_grainy(cut, rng, grain), folder, i, quality))
    return Corpus(
        folder, f"{count} JPEGs of 500x375, quality {quality}, mean {np.mean(sizes) / 1024:.0f} KiB, from {source}"
    )


def camera(photographs: list[Path], source: str, folder: Path, count: int) -> Corpus:
    """Full-size sequential files, as cameras write them, of 4 megapixels and more: the photographs of that size, those that
    are progressive saved again. Where there are none, all are enlarged to 12 megapixels with grain."""
    rng, sizes, pixels = np.random.default_rng(1), [], []
    own = [path for path in photographs if _megapixels(path) >= 4.0]
    for i in range(count):
        path = (own or photographs)[i % len(own or photographs)]
        image = Image.open(path)
        if own and not _is_progressive(path):
            sizes.append(_write(path.read_bytes(), folder, i))
        elif own:
            sizes.append(_save(image.convert("RGB"), folder, i, 92))
        else:
            ratio = (12e6 / (image.width * image.height)) ** 0.5
            image = image.convert("RGB").resize((round(image.width * ratio), round(image.height * ratio)), BICUBIC)
            sizes.append(_save(_grainy(image, rng, 4.0), folder, i, 92))
        pixels.append(image.width * image.height / 1e6)
    what = "progressive ones saved again as sequential at quality 92" if own else "enlarged with grain, quality 92"
    return Corpus(folder, f"{count} JPEGs {_told(pixels, sizes)}, {what}, from {source}")


def progressive(photographs: list[Path], source: str, folder: Path, count: int) -> Corpus:
    """Full-size progressive files, as the web has them: those that are; where there are none, others saved so."""
    sizes, pixels = [], []
    own = [path for path in photographs if _megapixels(path) >= 1.5 and _is_progressive(path)]
    for i in range(count):
        image = Image.open((own or photographs)[i % len(own or photographs)])
        if own:
            sizes.append(_write(own[i % len(own)].read_bytes(), folder, i))
        else:
            image = image.convert("RGB").resize((image.width * 3, image.height * 3), BICUBIC)
            sizes.append(_save(image, folder, i, 90, progressive=True))
        pixels.append(image.width * image.height / 1e6)
    what = "their own progressive files" if own else "enlarged and saved as progressive"
    return Corpus(folder, f"{count} JPEGs {_told(pixels, sizes)}, {what}, from {source}")


def _told(pixels: list[float], sizes: list[int]) -> str:
    mean = f"mean {np.mean(pixels):.1f} MP and {np.mean(sizes) / 2**20:.2f} MiB"
    return f"of {min(pixels):.1f} to {max(pixels):.1f} MP, {mean}"


def _megapixels(path: Path) -> float:
    """Of a JPEG; 0 for any other file."""
    image = Image.open(path)
    return image.width * image.height / 1e6 if image.format == "JPEG" else 0.0


def _is_progressive(path: Path) -> bool:
    return bool(Image.open(path).info.get("progressive"))


def _grainy(image: Image.Image, rng: np.random.Generator, grain: float) -> Image.Image:
    noise = rng.standard_normal((image.height, image.width, 3), dtype=np.float32) * grain
    return Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).round().astype(np.uint8))


def _save(image: Image.Image, folder: Path, number: int, quality: int, progressive: bool = False) -> int:
    path = folder / "picture.jpg"
    folder.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality, progressive=progressive)
    return _write(path.read_bytes(), folder, number)


def _write(data: bytes, folder: Path, number: int) -> int:
    """Into one of four classes; the first of each is the evaluation's too, which is not measured."""
    for part in ("train", "val")[: 2 if number < 4 else 1]:
        (folder / part / f"class{number % 4}").mkdir(parents=True, exist_ok=True)
        (folder / part / f"class{number % 4}" / f"{number:04}.jpg").write_bytes(data)
    return len(data)
