"""Pictures in memory, and data sets that a program makes of its own arrays."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import vitcore
from vitcore.data import datasets
from vitcore.data.datasets import find_dataset, offer, open_dataset
from vitcore.data.feed import Feed
from vitcore.data.formats.arrays import ArrayData, Pictures
from vitcore.errors import VitcoreError

RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 1, 0, 2])


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets, "_OFFERED", {})
    yield


def load(split: Any) -> tuple[torch.Tensor, ...]:
    indices = np.arange(len(split))
    images, labels, weight = split.load(indices, indices, 0, None)
    return images, labels, weight


@pytest.mark.parametrize("kind", ["NCHW", "NHWC", "grey", "tensor", "strided tensor", "read-only"])
def test_arrays_of_every_layout_are_the_same_pictures(kind: str) -> None:
    images = pixels(6, 3, 8, 8)
    expected = torch.from_numpy(images)
    given: Any = {
        "NCHW": images, "NHWC": np.ascontiguousarray(images.transpose(0, 2, 3, 1)), "grey": images[:, 0],
        "tensor": expected, "strided tensor": expected.permute(0, 2, 3, 1).contiguous(), "read-only": images.copy(),
    }[kind]  # fmt: skip
    if kind == "read-only":
        given.setflags(write=False)
    expected = expected[:, :1] if kind == "grey" else expected
    data = open_dataset(ArrayData("mine", (given, LABELS), (given[:2], LABELS[:2])), img_size=8)
    got, labels, weight = load(data.train)
    assert torch.equal(got, expected) and labels.tolist() == LABELS.tolist() and weight.tolist() == [1.0] * 6
    assert (data.channels, data.num_classes, data.class_names) == (expected.shape[1], 3, ["0", "1", "2"])
    assert torch.equal(load(data.eval)[0], expected[:2])


def test_a_picture_is_a_view_and_not_a_copy() -> None:
    images = pixels(6, 3, 4, 4)
    source = Pictures(images, LABELS, "mine")
    assert np.shares_memory(source.read(2), images) and source.where(2) == "mine: picture 2"
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again.read(5), images[5]) and np.array_equal(again.labels, LABELS)


def test_grey_arrays_serve_a_model_of_three_channels_and_rgb_ones_not_one_of_one() -> None:
    grey, rgb = pixels(6, 4, 4), pixels(6, 3, 4, 4)
    images = load(open_dataset(ArrayData("g", (grey, LABELS), (grey, LABELS)), img_size=4, channels=3).train)[0]
    assert images.shape == (6, 3, 4, 4) and all(torch.equal(images[:, c], torch.from_numpy(grey)) for c in range(3))
    with pytest.raises(VitcoreError, match=r"c: pictures have 3 channel\(s\) and the model takes 1"):
        open_dataset(ArrayData("c", (rgb, LABELS), (rgb, LABELS)), img_size=4, channels=1)


@pytest.mark.parametrize(
    ("images", "labels", "more", "words"),
    [
        (pixels(6, 3, 4, 4).astype(np.float32), LABELS, {}, r"mine: train images: float32 \(6, 3, 4, 4\) is no array of"),
        ([[1]], LABELS, {}, "mine: train images: list"),
        (pixels(6, 4), LABELS, {}, r"uint8 \(6, 4\) is no array of pictures"),
        (pixels(6, 5, 4, 4), LABELS, {}, "has neither 1 nor 3 channels"),
        (pixels(6, 3, 4, 3), LABELS, {}, 'may be NCHW or NHWC; say layout="NCHW"'),
        (pixels(6, 3, 4, 4), LABELS, {"layout": "NHWC"}, "is not NHWC with 1 or 3 channels"),
        (pixels(6, 3, 0, 4), LABELS, {}, "are empty"),
        (pixels(6, 3, 4, 4), LABELS[:5], {}, "6 images and 5 labels"),
        (pixels(0, 3, 4, 4), LABELS[:0], {}, "0 images and 0 labels"),
        (pixels(6, 3, 4, 4), LABELS * 1.0, {}, r"mine: train labels: float64 \(6,\) is no list of classes"),
        (pixels(6, 3, 4, 4), LABELS - 1, {}, "mine: train labels: -1 to 1 are no classes"),
        (pixels(6, 3, 4, 4), LABELS, {"class_names": ["a", "b"]}, "label 2 has no name, there are 2"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_pictures_are_refused(images: Any, labels: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        ArrayData("mine", (images, labels), (pixels(6, 3, 4, 4), LABELS), **more)


def test_splits_of_different_channels_are_refused_and_a_layout_settles_what_may_be_either() -> None:
    with pytest.raises(VitcoreError, match=r"mine: train has 3 channel\(s\), eval 1"):
        ArrayData("mine", (pixels(6, 3, 4, 4), LABELS), (pixels(6, 4, 4), LABELS))
    either = pixels(6, 3, 4, 3)
    data = open_dataset(ArrayData("m", (either, LABELS), (either, LABELS), layout="NHWC"), img_size=4)
    assert data.channels == 3


@pytest.mark.parametrize("name", ["digits", "hf:mine", ""])
def test_a_name_of_a_format_cannot_be_taken(name: str) -> None:
    data = ArrayData(name, (pixels(6, 3, 4, 4), LABELS), (pixels(6, 3, 4, 4), LABELS))
    with pytest.raises(VitcoreError, match="the name is that of a format"):
        offer(data)


def test_a_feed_takes_the_data_set_and_it_is_found_by_name() -> None:
    data = ArrayData("mine", (pixels(6, 3, 4, 4), LABELS), (pixels(6, 3, 4, 4), LABELS), class_names=["a", "b", "c"])
    assert offer(data) == "mine" and find_dataset("mine") == "vitcore.data.datasets:open_offered"
    with pytest.raises(VitcoreError, match="did you mean 'mine'"):
        find_dataset("mina")
    feed = Feed(open_dataset("mine", img_size=4, workers=0), seed=0, micro_batch=6)
    batch, _ = feed.next_train(0)
    assert sorted(batch.labels.tolist()) == sorted(LABELS) and batch.images.shape == (6, 3, 4, 4)
    feed.close()


def test_a_recipe_trains_on_arrays_and_making_them_imports_no_torch(tmp_path: Any) -> None:
    code = (
        "import sys, numpy as np, vitcore\n"
        "from vitcore.data.formats.arrays import ArrayData\n"
        "x, y = np.random.default_rng(0).integers(0, 256, (64, 8, 8), dtype=np.uint8), np.arange(64) % 10\n"
        "data = ArrayData('mine', (x, y), (x, y))\n"
        "assert 'torch' not in sys.modules\n"
        "result = vitcore.recipe('digits').train(dataset=data, num_steps=2, train_batch_size=8, threads=1, backend='cpu',\n"
        f"    workers=0, warmup_steps=0, output_dir={str(tmp_path)!r})\n"
        "assert (result.steps, result.total) == (2, 64)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr


def test_a_setting_of_another_type_is_still_refused() -> None:
    with pytest.raises(VitcoreError, match="dataset = 3 is not of type str"):
        vitcore.recipe("digits").config(dataset=3)
