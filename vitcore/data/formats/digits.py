"""The embedded handwritten digits (8x8, grey), whose origin and split DIGITS.md tells."""

import gzip
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.datasets import DatasetOptions
from vitcore.data.order import Int64s
from vitcore.data.warp import augment_reals
from vitcore.errors import VitcoreError

SIDE = 8
LEVELS = 16
# First rows of evaluation and its end; training is all rows before. The file is ordered by writer, so the split is by
# place. "digits-tune" is for choosing hyper-parameters without a look at the rows that "digits" is judged by.
SPLITS = {"digits": (1437, 1797), "digits-tune": (1077, 1437)}


@lru_cache(maxsize=1)
def read_digits() -> tuple[Tensor, Tensor]:
    """All 1,797 rows in the file's order: pictures float32 (1797, 1, 8, 8) in [0, 1], labels int64 (1797,)."""
    packed = files("vitcore.data").joinpath("digits.csv.gz").read_bytes()
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    table = torch.from_numpy(np.loadtxt(lines, delimiter=",", dtype=np.float32))
    return table[:, :-1].reshape(-1, 1, SIDE, SIDE) / LEVELS, table[:, -1].to(torch.int64)


@dataclass(frozen=True)
class DigitSplit:
    """Some rows of the file, in memory; float32 in [-1, 1]."""

    name: str
    images: Tensor
    labels: Tensor
    bad_images: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `vitcore.data.datasets.Split.load`."""
        rows = torch.from_numpy(indices)
        images = self.images[rows]
        if augment is not None:
            augment = augment.without_decoding(self.name)
            if augment.of_reals:
                images = augment_reals(images, seed, positions, augment)
        return images * 2.0 - 1.0, self.labels[rows], torch.ones(len(rows))


@dataclass(frozen=True)
class Digits:
    """`digits` or `digits-tune`."""

    name: str
    train: DigitSplit
    eval: DigitSplit
    channels: int = 1
    num_classes: int = 10

    @property
    def class_names(self) -> list[str]:
        return [str(digit) for digit in range(self.num_classes)]


def open_digits(options: DatasetOptions) -> Digits:
    """Open `digits` or `digits-tune`; VitcoreError for another picture size than 8."""
    if options.img_size != SIDE:
        raise VitcoreError(
            f"{options.name}: the pictures are {SIDE}x{SIDE} and img_size is {options.img_size}; "
            f"use img_size {SIDE} and a variant with a patch that divides it, such as ViT-digits"
        )
    images, labels = read_digits()
    middle, end = SPLITS[options.name]
    return Digits(
        name=options.name,
        train=DigitSplit(options.name, images[:middle], labels[:middle]),
        eval=DigitSplit(options.name, images[middle:end], labels[middle:end]),
    )
