"""Small models in Google's layout, one for each variant's structure, and pictures for them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from oracle import Array, random_parameters


@dataclass(frozen=True)
class Case:
    """A variant's structure, made small: its patch, its stages and its ratio of heads stay."""

    name: str
    patch: int
    width: int
    heads: int
    mlp: int
    native: tuple[int, int]
    """Rows and columns of patches in the file."""
    size: tuple[int, int]
    """Rows and columns of pixels that are asked for."""
    depth: int = 2
    stages: tuple[int, ...] | None = None
    token: bool = True
    representation: int = 0
    today: bool = False
    prefix: str = ""
    flat_norms: bool = False
    stem_width: int = 32
    classes: int = 7

    def parameters(self, seed: int = 0) -> dict[str, Array]:
        return random_parameters(
            np.random.default_rng(seed), patch=self.patch, width=self.width, depth=self.depth, heads=self.heads,
            mlp=self.mlp, classes=self.classes, grid=self.native, stages=self.stages, stem_width=self.stem_width,
            token=self.token, representation=self.representation, today=self.today, prefix=self.prefix,
            flat_norms=self.flat_norms,
        )  # fmt: skip

    def images(self, seed: int = 1, batch: int = 2) -> Array:
        """Pictures (B, rows, columns, 3) in [-1, 1]."""
        return np.random.default_rng(seed).uniform(-1, 1, (batch, *self.size, 3)).astype(np.float32)


# Each variant once; both numberings, token and mean, with and without pre-logits, native, larger, smaller and oblong
# grids are spread over them so that every pair of these is met.
CASES = [
    Case("ViT-B_16", 16, 96, 6, 384, (4, 4), (64, 64), representation=96),
    Case("ViT-B_16 today, larger", 16, 96, 6, 200, (4, 4), (96, 96), today=True, representation=40),
    Case("ViT-B_16 mean, oblong", 16, 96, 6, 384, (4, 4), (48, 112), token=False, representation=64),
    Case("ViT-B_16 of twelve blocks", 16, 48, 4, 96, (3, 3), (48, 48), depth=12),
    Case("ViT-B_32", 32, 96, 6, 384, (3, 3), (128, 64)),
    Case("ViT-B_8 today, mean", 8, 96, 6, 384, (6, 6), (48, 48), token=False, today=True),
    Case("ViT-L_16 smaller", 16, 128, 8, 512, (6, 6), (64, 64), depth=3, representation=128),
    Case("ViT-L_32 a training state", 32, 128, 8, 512, (2, 2), (64, 64), depth=3, prefix="opt/target/"),
    Case("ViT-H_14 incomplete patch", 14, 160, 2, 640, (4, 4), (64, 64), representation=160, today=True),
    Case("ViT-Ti_16 one patch", 16, 48, 3, 192, (3, 3), (16, 16)),
    Case("ViT-S_16 under params", 16, 96, 6, 384, (3, 3), (80, 48), prefix="params/", today=True),
    Case("ViT-S_32 mean, smaller", 32, 96, 6, 384, (4, 4), (64, 64), token=False),
    Case("R50-ViT-B_16", 1, 96, 6, 384, (4, 4), (64, 64), stages=(3, 4, 9), representation=96),
    Case("R50-ViT-B_16 today, odd and larger", 1, 96, 6, 384, (3, 3), (75, 90), stages=(3, 4, 9), today=True,
         flat_norms=True),
    Case("R50-ViT-B_16 mean", 1, 96, 6, 384, (3, 3), (48, 48), stages=(3, 4, 9), token=False),
    Case("R50-ViT-L_32", 1, 128, 8, 512, (3, 3), (96, 96), stages=(3, 4, 6, 3)),
    Case("R26-ViT-B_32 oblong", 1, 96, 6, 384, (2, 2), (64, 130), stages=(2, 2, 2, 2), representation=32),
    Case("R26-ViT-S_32 today", 1, 96, 6, 384, (2, 2), (64, 64), stages=(2, 2, 2, 2), today=True),
    Case("R-ViT-Ti_16", 8, 48, 3, 192, (2, 2), (96, 64), stages=()),
    Case("R-ViT-Ti_16 of the full stem", 8, 48, 3, 192, (2, 2), (64, 64), stages=(), stem_width=64, flat_norms=True),
]  # fmt: skip
BY_NAME = {case.name: case for case in CASES}


def save(path: Path, parameters: dict[str, Array]) -> Path:
    """Write an npz as the published files are written."""
    np.savez(path, **parameters)
    return path


def logits(model: Any, images: Array) -> Array:
    """The model's logits for pictures (B, rows, columns, 3)."""
    with torch.no_grad():
        out: Array = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return out
