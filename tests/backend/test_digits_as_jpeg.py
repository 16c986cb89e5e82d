"""Digits as JPEG files, trained on by the fast way of decoding and by the plain one: the accuracy is the same within noise.

Pictures of 64 pixels for a model of 8: crops are at least 5 times the model's size, so the fast way decodes scaled ones.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from rig import config, train

from vitcore.data import decode
from vitcore.data.formats.digits import SPLITS, read_digits
from vitcore.data.loading import reading
from vitcore.data.places import crop_box
from vitcore.model.variants import VARIANTS, find_variant

SIDE = 64
COLOUR = find_variant("ViT-digits").replace(name="ViT-digits-rgb", channels=3)  # files of pictures are read as colour
Accuracies = Callable[[int, range], dict[str, list[float]]]


def plain_into(out_CHW: Any, stored: Any, view: Any, draws: Any = None, share: Any = None) -> None:
    """Decode all of it, cut, and resize in float64."""
    image_CHW = decode.decode(stored)
    if draws is not None:
        top, left, height, width = crop_box(*image_CHW.shape[1:], draws, share)
        image_CHW = image_CHW[:, top : top + height, left : left + width]
    resized = F.interpolate(image_CHW[None].double(), view.size, mode="bilinear", antialias=True)[0]
    out_CHW.copy_(resized.round().clamp(0, 255))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    images, labels = read_digits()
    middle, end = SPLITS["digits"]
    for row in range(end):
        path = folder / ("train" if row < middle else "val") / str(int(labels[row])) / f"{row:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = (images[row, 0] * 255).round().to(torch.uint8).numpy()
        Image.fromarray(np.asarray(pixels)).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=95)
    return folder


@pytest.fixture
def accuracies(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Accuracies:
    """Of both ways, in percent, for some seeds."""

    monkeypatch.setitem(VARIANTS, COLOUR.name, COLOUR)

    def run(steps: int, seeds: range) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {"fast": [], "plain": []}
        for seed in seeds:
            for way, into in (("fast", decode.picture_into), ("plain", plain_into)):
                monkeypatch.setattr(reading, "picture_into", into)
                settings = config(
                    tmp_path / f"{way}-{seed}", dataset="folder", data_path=str(files), model_type=COLOUR.name, img_size=8,
                    num_steps=steps, seed=seed, gradient_accumulation_steps=1, eval_every=0, learning_rate=4e-3,
                    warmup_steps=100, augment_rotate=0.0, augment_scale=(1.0, 1.0), augment_translate=0.0,
                    augment_crop=(0.7, 1.0), dropout=0.0, eval_batch_size=360, workers=0,
                )  # fmt: skip
                found[way].append(train(settings).accuracy)
        return found

    return run


def test_a_short_training_comes_as_far_by_either_way(accuracies: Accuracies) -> None:
    found = accuracies(300, range(1))
    assert abs(found["fast"][0] - found["plain"][0]) < 5.0 and min(found["fast"]) > 70.0, found


@pytest.mark.slow
def test_a_whole_training_comes_as_far_by_either_way(accuracies: Accuracies) -> None:
    """The digits recipe's 2,500 steps, 3 seeds: the means differ by less than the seeds do."""
    found = accuracies(2500, range(3))
    print(found)
    means = {way: statistics.mean(values) for way, values in found.items()}
    spread = max(max(values) - min(values) for values in found.values())
    assert abs(means["fast"] - means["plain"]) <= max(spread, 0.6), found
    assert min(means.values()) > 94.0, found
