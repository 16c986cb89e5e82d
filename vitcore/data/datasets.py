"""The data sets by name, and what a data set is. No torch here: a name is refused before anything heavy is imported."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from vitcore.data.augment import Augment
from vitcore.data.order import Int64s
from vitcore.data.view import Interpolation, Resize, View
from vitcore.errors import VitcoreError, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from vitcore.data.loader import Loader

BAD_IMAGES = ("stop", "skip", "replace")
LOADERS = ("auto", "threads", "processes")


class Split(Protocol):
    """One part of a data set, training or evaluation."""

    @property
    def bad_images(self) -> int:
        """Files that could not be read so far, each counted once."""
        ...

    def __len__(self) -> int: ...

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> "tuple[Tensor, Tensor, Tensor]":
        """Images, labels and weights of the samples `indices`, as `vitcore.data.batch.Batch` describes them.

        Augmentation draws from (seed, positions) alone; None is evaluation, where nothing is drawn and no sample takes
        another's place, and `Augment()` is training without any. The dtype and shape of a picture are the same for every
        call with the same `augment`, also for no indices. The memory is the caller's: it is not written again while a
        tensor that was returned, or a view of it, lives. Safe to call from several threads. Raises VitcoreError for an
        augmentation that the data cannot have.
        """
        ...


class Dataset(Protocol):
    """Two splits with the same classes."""

    @property
    def name(self) -> str: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def class_names(self) -> list[str]: ...
    @property
    def channels(self) -> int: ...
    @property
    def train(self) -> Split: ...
    @property
    def eval(self) -> Split: ...


@dataclass(frozen=True, kw_only=True)
class DatasetOptions:
    """The arguments of `open_dataset`, as each data set's opener gets them."""

    name: str
    img_size: int
    channels: int | None = None
    data_path: Path | None = None
    download: bool = False
    workers: int | Literal["auto"] = 0
    loader: str = "auto"
    bad_images: str = "stop"
    interpolation: Interpolation = "bilinear"
    eval_resize: Resize = "squash"
    eval_crop_pct: float = 0.875
    train_size: int = 1024
    eval_size: int = 256
    classes: int = 10

    @property
    def view(self) -> View:
        """How pictures become the model's input."""
        return View(
            size=(self.img_size, self.img_size), channels=3 if self.channels is None else self.channels,
            interpolation=self.interpolation, resize=self.eval_resize, crop_pct=self.eval_crop_pct,
        )  # fmt: skip

    @cached_property
    def decoders(self) -> "Loader":
        """Who decodes, one and the same for all splits that are opened with these options."""
        from vitcore.data.loader import make_loader

        return make_loader(self.workers, self.loader)


# Each opener is "module:function" of one DatasetOptions.
DATASETS: dict[str, str] = {
    "digits": "vitcore.data.formats.digits:open_digits",
    "digits-tune": "vitcore.data.formats.digits:open_digits",
    "synthetic": "vitcore.data.formats.synthetic:open_synthetic",
    "folder": "vitcore.data.formats.folder:open_folder",
    "imagenet1K": "vitcore.data.formats.folder:open_folder",
}

# Names of the original recipe that people will type, and why they are refused. Not in DATASETS, so nothing lists them
# as available.
NOT_YET: dict[str, str] = {
    "cifar10": "the reader of CIFAR files is not implemented yet",
    "cifar100": "the reader of CIFAR files is not implemented yet",
}


def find_dataset(name: str) -> str:
    """The "module:function" that opens the data set `name`; VitcoreError when there is none."""
    if name in DATASETS:
        return DATASETS[name]
    known = ", ".join(DATASETS)
    if name in NOT_YET:
        raise VitcoreError(f"{name}: {NOT_YET[name]}; unpack it as a folder of pictures, or choose one of {known}")
    raise VitcoreError(f"unknown data set {name!r}{nearest(name, list(DATASETS))}; choose one of {known}")


def open_dataset(
    name: str,
    *,
    img_size: int,
    channels: int | None = None,
    data_path: str | Path | None = None,
    download: bool = False,
    workers: int | Literal["auto"] = 0,
    loader: str = "auto",
    bad_images: str = "stop",
    interpolation: Interpolation = "bilinear",
    eval_resize: Resize = "squash",
    eval_crop_pct: float = 0.875,
    train_size: int = 1024,
    eval_size: int = 256,
    classes: int = 10,
) -> Dataset:
    """Open a data set by name.

    img_size: side of the pictures, in pixels. channels: what the model takes; None accepts what the data has.
    For folders of pictures only: data_path, workers (threads that decode; 0 decodes in the calling one), bad_images
    ("stop" at a picture that cannot be read, or "skip" it). For synthetic only: train_size, eval_size, classes.
    Raises VitcoreError for an unknown name, and for options or files that the data set cannot use.
    """
    opener = find_dataset(name)
    if img_size < 1:
        raise VitcoreError(f"{name}: img_size {img_size} must be at least 1; give the model's")
    if workers != "auto" and workers < 0:
        raise VitcoreError(f"{name}: workers {workers} is negative; give 0 to decode without threads")
    if bad_images not in BAD_IMAGES:
        raise VitcoreError(f'{name}: bad_images={bad_images!r} is not known; give "stop", "skip" or "replace"')
    if loader not in LOADERS:
        raise VitcoreError(f"{name}: loader={loader!r} is not known; give one of {', '.join(LOADERS)}")
    options = DatasetOptions(
        name=name,
        img_size=img_size,
        channels=channels,
        data_path=None if data_path is None else Path(data_path),
        download=download,
        workers=workers,
        loader=loader,
        bad_images=bad_images,
        interpolation=interpolation,
        eval_resize=eval_resize,
        eval_crop_pct=eval_crop_pct,
        train_size=train_size,
        eval_size=eval_size,
        classes=classes,
    )
    module, _, function = opener.partition(":")
    open_it: Callable[[DatasetOptions], Dataset] = getattr(import_module(module), function)
    dataset = open_it(options)
    if channels is not None and channels != dataset.channels:
        raise VitcoreError(
            f"{name}: pictures have {dataset.channels} channel(s) and the model takes {channels}; "
            "choose a variant or a data set that fits the other"
        )
    return dataset
