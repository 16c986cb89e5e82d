"""The registry, the embedded digits and the synthetic pictures."""

import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch

from vitcore.data.augment import Augment
from vitcore.data.datasets import DATASETS, find_dataset, open_dataset
from vitcore.data.formats.digits import read_digits
from vitcore.errors import VitcoreError

WARP = Augment(rotate=10.0, scale=(0.9, 1.1), shear=5.0, translate=1.0, flip=True)


def everything(split):  # type: ignore[no-untyped-def]
    indices = np.arange(len(split))
    return split.load(indices, indices, 0, None)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        VitcoreError, match=r"unknown data set 'digit' \(did you mean 'digits'\?\); choose one of digits,"
    ):
        open_dataset("digit", img_size=8)


def test_every_name_has_an_opener_that_is_there() -> None:
    for name, opener in {**DATASETS, "hf:any": find_dataset("hf:any")}.items():
        module, _, function = opener.partition(":")
        assert find_dataset(name) == opener
        assert callable(getattr(import_module(module), function)), name


def test_names_are_found_without_torch() -> None:
    code = (
        "import sys; from vitcore.data.datasets import DATASETS, find_dataset; [find_dataset(name) for name in DATASETS]\n"
        "assert not {'torch', 'torchvision', 'PIL'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["digits", "folder", "imagenet1K", "idx", "webdataset", "synthetic"])
def test_a_download_of_what_is_not_published_for_it_is_refused(name: str) -> None:
    with pytest.raises(
        VitcoreError, match=f"^{name}: there is nothing to download, --download serves cifar10, cifar100 and hf:"
    ):
        open_dataset(name, img_size=8, download=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"img_size": 0}, "img_size 0 must be at least 1"),
        ({"img_size": 16}, "digits: the pictures are 8x8 and img_size is 16; use img_size 8"),
        ({"img_size": 8, "workers": -1}, "workers -1 is negative"),
        ({"img_size": 8, "bad_images": "ignore"}, "bad_images='ignore' is not known"),
        ({"img_size": 8, "channels": 3}, r"digits: pictures have 1 channel\(s\) and the model takes 3"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        open_dataset("digits", **options)


def test_digits_are_the_1797_rows_of_the_source() -> None:
    images, labels = read_digits()
    assert images.shape == (1797, 1, 8, 8) and labels.shape == (1797,)
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert images.min() == 0 and images.max() == 1
    assert torch.equal(images * 16, (images * 16).round())


def test_the_splits_of_digits_are_the_last_rows_and_never_overlap() -> None:
    images, _ = read_digits()
    whole, tune = open_dataset("digits", img_size=8, channels=1), open_dataset("digits-tune", img_size=8)
    assert (len(whole.train), len(whole.eval)) == (1437, 360)
    assert (len(tune.train), len(tune.eval)) == (1077, 360)
    assert (whole.num_classes, whole.channels, whole.class_names[7]) == (10, 1, "7")
    assert torch.equal(everything(whole.eval)[0], images[1437:] * 2 - 1)
    assert torch.equal(everything(tune.eval)[0], images[1077:1437] * 2 - 1)
    assert torch.equal(everything(tune.train)[0], images[:1077] * 2 - 1)


def test_one_nearest_neighbour_gets_344_of_the_360_held_out_digits() -> None:
    digits = open_dataset("digits", img_size=8)
    (train, train_labels, _), (held_out, labels, _) = everything(digits.train), everything(digits.eval)
    nearest = torch.cdist(held_out.flatten(1).double(), train.flatten(1).double()).argmin(1)
    assert int((train_labels[nearest] == labels).sum()) == 344


def test_digits_are_augmented_by_position_and_stay_in_range() -> None:
    split = open_dataset("digits", img_size=8).train
    indices, positions = np.array([5, 9, 5]), np.array([1000, 1001, 1002])
    images, labels, weight = split.load(indices, positions, 3, WARP)
    assert images.dtype == torch.float32 and images.min() >= -1 and images.max() <= 1
    assert torch.equal(weight, torch.ones(3)) and labels[0] == labels[2]
    assert not torch.equal(images[0], images[2])
    assert torch.equal(split.load(indices[1:], positions[1:], 3, WARP)[0], images[1:])
    assert not torch.equal(split.load(indices, positions, 4, WARP)[0], images)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_crops_are_refused_where_there_are_no_files(name: str) -> None:
    split = open_dataset(name, img_size=8).train
    with pytest.raises(VitcoreError, match=f"{name}: random crops are for folders of pictures; set crop to None"):
        split.load(np.arange(2), np.arange(2), 0, Augment(crop=(0.05, 1.0)))


def test_a_synthetic_picture_is_a_pure_function_of_its_index() -> None:
    first, second = (open_dataset("synthetic", img_size=16, channels=2, train_size=50) for _ in range(2))
    images, labels, _ = everything(first.train)
    assert images.dtype == torch.uint8 and images.shape == (50, 2, 16, 16)
    rows = np.array([30, 2, 49])
    again, again_labels, _ = second.train.load(rows, np.array([7, 8, 9]), 99, None)
    assert torch.equal(again, images[rows]) and torch.equal(again_labels, labels[rows])
    assert len({picture.numpy().tobytes() for picture in images}) == 50
    assert not torch.equal(everything(first.eval)[0][:10], images[:10])
    # Larger splits begin with the same pictures.
    longer = open_dataset("synthetic", img_size=16, channels=2, train_size=80)
    assert torch.equal(everything(longer.train)[0][:50], images)


def test_synthetic_classes_can_be_learned_and_are_even() -> None:
    data = open_dataset("synthetic", img_size=8, train_size=100, eval_size=40, classes=5)
    assert (data.num_classes, len(data.class_names), data.channels) == (5, 5, 3)
    (train, labels, _), (held_out, expected, _) = everything(data.train), everything(data.eval)
    assert torch.bincount(labels).tolist() == [20] * 5
    nearest = torch.cdist(held_out.flatten(1).float(), train.flatten(1).float()).argmin(1)
    assert torch.equal(labels[nearest], expected)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
@pytest.mark.parametrize("augment", [None, WARP])
def test_loading_nothing_tells_the_shape_and_dtype(name: str, augment: Augment | None) -> None:
    split = open_dataset(name, img_size=8).train
    nothing, something = np.empty(0, dtype=np.int64), np.arange(3)
    for empty, full in zip(
        split.load(nothing, nothing, 0, augment), split.load(something, something, 0, augment), strict=True
    ):
        assert (len(empty), empty.dtype, empty.shape[1:]) == (0, full.dtype, full.shape[1:])


@pytest.mark.parametrize("field", ["train_size", "eval_size", "classes"])
def test_synthetic_sizes_below_one_are_refused(field: str) -> None:
    with pytest.raises(VitcoreError, match=f"synthetic: {field}=0 must be at least 1"):
        open_dataset("synthetic", img_size=8, **{field: 0})
