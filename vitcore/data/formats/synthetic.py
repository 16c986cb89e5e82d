"""Synthetic pictures that can be learned: for benchmarks and tests, through the same path as real data."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.datasets import DatasetOptions
from vitcore.data.order import Int64s, sample_keys
from vitcore.data.warp import augment_reals
from vitcore.errors import VitcoreError

# The pictures do not depend on the run's seed: two runs with different seeds see the same data set.
CONTENT_SEED = 20201022
CELLS = 4
PATTERN_LEVELS, NOISE_LEVELS = 192, 64
WINDOWS = 65536


def _bytes(stream: int, count: int) -> npt.NDArray[np.uint8]:
    # Raw Philox output, which NumPy promises to keep.
    words = np.random.Philox(key=np.array([CONTENT_SEED, stream], dtype=np.uint64)).random_raw(-(-count // 8))
    return np.asarray(words).astype("<u8").view(np.uint8)[:count]


@dataclass(frozen=True)
class SyntheticSplit:
    """`size` pictures, uint8: the mosaic of the class (index modulo classes) and noise that the index chooses.

    A picture is a pure function of its index plus `first`. The noise is a window into one pool, so making a picture
    costs about as much as copying it, and a benchmark measures the step.
    """

    name: str
    first: int
    size: int
    patterns: npt.NDArray[np.uint8]
    noise: npt.NDArray[np.uint8]
    bad_images: int = 0

    def __len__(self) -> int:
        return self.size

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `vitcore.data.datasets.Split.load`."""
        ids = np.asarray(indices, dtype=np.int64) + self.first
        labels = ids % len(self.patterns)
        pixels = self.patterns[labels]
        starts = sample_keys(CONTENT_SEED, ids).view(np.uint32) % WINDOWS
        shape = self.patterns.shape[1:]
        for row, start in enumerate(starts.tolist()):
            pixels[row] += self.noise[start : start + pixels[row].size].reshape(shape)
        images = torch.from_numpy(pixels)
        if augment is not None:
            augment = augment.without_decoding(self.name)
            if augment.of_reals:
                images = augment_reals(images.float() / 255.0, seed, positions, augment) * 2.0 - 1.0
        return images, torch.from_numpy(labels), torch.ones(len(ids))


@dataclass(frozen=True)
class Synthetic:
    """The data set `synthetic`."""

    name: str
    train: SyntheticSplit
    eval: SyntheticSplit
    channels: int
    num_classes: int

    @property
    def class_names(self) -> list[str]:
        return [f"class {label}" for label in range(self.num_classes)]


def open_synthetic(options: DatasetOptions) -> Synthetic:
    """Make the two splits, whose pictures differ; VitcoreError for sizes below 1."""
    for field in ("train_size", "eval_size", "classes"):
        size = getattr(options, field)
        if size < 1:
            raise VitcoreError(f"{options.name}: {field}={size} must be at least 1; give a positive one")
    channels, side = options.channels if options.channels is not None else 3, options.img_size
    cells = _bytes(0, options.classes * channels * CELLS * CELLS).reshape(-1, channels, CELLS, CELLS) % PATTERN_LEVELS
    place = np.arange(side) * CELLS // side
    patterns = np.ascontiguousarray(cells[:, :, place][:, :, :, place])
    noise = _bytes(1, channels * side * side + WINDOWS) % NOISE_LEVELS
    return Synthetic(
        name=options.name,
        train=SyntheticSplit(options.name, 0, options.train_size, patterns, noise),
        eval=SyntheticSplit(options.name, options.train_size, options.eval_size, patterns, noise),
        channels=channels,
        num_classes=options.classes,
    )
