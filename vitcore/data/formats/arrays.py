"""Pictures in memory: the samples of small formats, and a data set that a program makes of its own arrays:

    from vitcore.data.formats.arrays import ArrayData
    data = ArrayData("mine", train=(images, labels), eval=(others, their_labels), class_names=["cat", "dog"])
    vitcore.recipe("digits").train(dataset=data, model_type="ViT-Ti_16", img_size=32)

Importing this imports no torch, so that a backend's environment can still be set.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vitcore.data.datasets import Dataset, DatasetOptions
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

if TYPE_CHECKING:
    from torch import Tensor


class Pictures:
    """Pictures of one split in memory: a `vitcore.data.source.Source`.

    images: uint8 of shape (N, C, H, W), not copied, also where it is strided. labels: int64 (N,). origin: what a person
    finds a picture by, as `train-images-idx3-ubyte: picture 17`. The pictures are held as a tensor, since torch hands a
    tensor to other processes as shared memory, and only once one is handed over.
    """

    def __init__(self, images: npt.NDArray[np.uint8] | Tensor, labels: Int64s, origin: str) -> None:
        import torch

        if isinstance(images, np.ndarray):
            with warnings.catch_warnings():  # of an array that is read-only; nothing here writes to it
                warnings.simplefilter("ignore", UserWarning)
                images = torch.from_numpy(images)
        self._images, self.labels, self._origin = images, labels, origin

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """A view of the picture, uint8 of shape (C, H, W)."""
        picture: npt.NDArray[np.uint8] = self._images[index].numpy()
        return picture

    def where(self, index: int) -> str:
        """The picture's place in what it came from."""
        return f"{self._origin}: picture {index}"


@dataclass(frozen=True)
class ArrayData:
    """A data set of arrays, for `vitcore.recipe(...).train(dataset=...)` and `open_dataset`.

    train, eval: (images, labels) each, NumPy arrays or tensors. images: uint8 (N, C, H, W) or (N, H, W, C) with C 1 or 3,
    or grey (N, H, W); of any side, pictures are resized as those in files are. labels: whole numbers from 0, (N,).
    class_names: unset, the numbers, as many as the greatest label needs. layout: "NCHW" or "NHWC" where the shape leaves
    it open. Nothing is copied. Raises VitcoreError for arrays of another dtype or shape, and for labels out of range.
    """

    name: str
    train: tuple[Any, Any]
    eval: tuple[Any, Any]
    class_names: list[str] | None = None
    layout: str | None = None
    _parts: tuple[tuple[Any, Int64s], tuple[Any, Int64s]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = tuple(
            (
                _images(f"{self.name}: {part} images", images, self.layout),
                _labels(f"{self.name}: {part} labels", labels),
            )
            for part, (images, labels) in (("train", self.train), ("eval", self.eval))
        )
        for part, (images, labels) in zip(("train", "eval"), parts, strict=True):
            if len(images) != len(labels) or not len(labels):
                raise VitcoreError(
                    f"{self.name}: {part} has {len(images)} images and {len(labels)} labels; give one label an image, at "
                    "least one"
                )
        channels = [images.shape[1] for images, _ in parts]
        if channels[0] != channels[1]:
            raise VitcoreError(
                f"{self.name}: train has {channels[0]} channel(s), eval {channels[1]}; give both the same"
            )
        top = int(max(labels.max() for _, labels in parts))
        if self.class_names is not None and top >= len(self.class_names):
            raise VitcoreError(
                f"{self.name}: label {top} has no name, there are {len(self.class_names)}; name every class"
            )
        if self.class_names is None:
            object.__setattr__(self, "class_names", [str(label) for label in range(top + 1)])
        object.__setattr__(self, "_parts", parts)

    def open(self, options: DatasetOptions) -> Dataset:
        """The data set as a model takes it."""
        # Here and not at the top: both import torch.
        from vitcore.data.formats.opened import open_pictures

        (train, train_labels), (val, val_labels) = self._parts
        return open_pictures(
            options, list(self.class_names or ()), Pictures(train, train_labels, f"{self.name} train"),
            Pictures(val, val_labels, f"{self.name} eval"), channels=int(train.shape[1]),
        )  # fmt: skip


def _images(what: str, images: Any, layout: str | None) -> Any:
    """The pictures as (N, C, H, W), as a view; an array of NumPy's or a tensor, as it came."""
    if "uint8" not in str(getattr(images, "dtype", type(images).__name__)) or images.ndim not in (3, 4):
        kind = f"{getattr(images, 'dtype', type(images).__name__)} {tuple(getattr(images, 'shape', ()))}"
        raise VitcoreError(
            f"{what}: {kind} is no array of pictures; give uint8 of shape (N, C, H, W), (N, H, W, C) or (N, H, W)"
        )
    if 0 in images.shape[1:]:
        raise VitcoreError(f"{what}: pictures of shape {tuple(images.shape[1:])} are empty; give some with pixels")
    if images.ndim == 3:
        return images[:, None]
    order = layout or _layout(what, tuple(images.shape))
    at = {"NCHW": 1, "NHWC": 3}.get(order)
    if at is None or images.shape[at] not in (1, 3):
        raise VitcoreError(
            f'{what}: {tuple(images.shape)} is not {order} with 1 or 3 channels; give layout "NCHW" or "NHWC"'
        )
    if at == 1:
        return images
    return images.transpose(0, 3, 1, 2) if isinstance(images, np.ndarray) else images.permute(0, 3, 1, 2)


def _layout(what: str, shape: tuple[int, ...]) -> str:
    """Which of both the shape is of; VitcoreError where it may be either, or neither."""
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first and last:
        raise VitcoreError(f'{what}: {shape} may be NCHW or NHWC; say layout="NCHW" or "NHWC"')
    if not first and not last:
        raise VitcoreError(f"{what}: {shape} has neither 1 nor 3 channels; give grey or RGB pictures")
    return "NCHW" if first else "NHWC"


def _labels(what: str, labels: Any) -> Int64s:
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise VitcoreError(
            f"{what}: {found.dtype} {found.shape} is no list of classes; give whole numbers of shape (N,)"
        )
    if found.size and (found.min() < 0 or found.max() >= 1 << 31):
        raise VitcoreError(f"{what}: {found.min()} to {found.max()} are no classes; count them from 0")
    return found.astype(np.int64, copy=False)
