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

    from vitcore.data.loading.loader import Loader

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
        from vitcore.data.loading.loader import make_loader

        return make_loader(self.workers, self.loader)


class Offered(Protocol):
    """A data set that a Python program brings, as `vitcore.data.formats.arrays.ArrayData` does."""

    @property
    def name(self) -> str: ...

    def open(self, options: DatasetOptions) -> Dataset:
        """Its two splits, as the options ask; VitcoreError for options that it cannot meet."""
        ...


# Each opener is "module:function" of one DatasetOptions.
DATASETS: dict[str, str] = {
    "digits": "vitcore.data.formats.digits:open_digits",
    "digits-tune": "vitcore.data.formats.digits:open_digits",
    "synthetic": "vitcore.data.formats.synthetic:open_synthetic",
    "folder": "vitcore.data.formats.folder:open_folder",
    "imagenet1K": "vitcore.data.formats.folder:open_folder",
    "cifar10": "vitcore.data.formats.cifar:open_cifar",
    "cifar100": "vitcore.data.formats.cifar:open_cifar",
    "idx": "vitcore.data.formats.idx:open_idx",
    "webdataset": "vitcore.data.formats.webdataset:open_webdataset",
    "cached": "vitcore.data.formats.cached:open_cached",
}
# "hf:NAME" or "hf:NAME:CONFIG", a data set of Hugging Face's `datasets`.
HUGGING_FACE = "hf:"
DOWNLOADABLE = ("cifar10", "cifar100")
_OFFERED: dict[str, Offered] = {}


def offer(dataset: Offered) -> str:
    """Make a program's own data set known by its name, which is returned: `open_dataset` and runs of this process find it
    there. Another of the same name takes its place; VitcoreError for a name that is taken by a format."""
    name = dataset.name
    if name in DATASETS or name.startswith(HUGGING_FACE) or not name:
        raise VitcoreError(f"data set {name!r}: the name is that of a format of files; give it another")
    _OFFERED[name] = dataset
    return name


def open_offered(options: DatasetOptions) -> Dataset:
    """Open what was offered under the options' name."""
    return _OFFERED[options.name].open(options)


def find_dataset(name: str) -> str:
    """The "module:function" that opens the data set `name`; VitcoreError when there is none."""
    if name in DATASETS:
        return DATASETS[name]
    if name in _OFFERED:
        return "vitcore.data.datasets:open_offered"
    if name.startswith(HUGGING_FACE):
        if not name.removeprefix(HUGGING_FACE).strip(":"):
            raise VitcoreError(f"data set {name!r} has no name; write hf:NAME or hf:NAME:CONFIG, as hf:mnist")
        return "vitcore.data.formats.hf:open_hf"
    known = ", ".join([*DATASETS, *_OFFERED, "hf:NAME"])
    raise VitcoreError(f"unknown data set {name!r}{nearest(name, [*DATASETS, *_OFFERED])}; choose one of {known}")


def check_channels(name: str, has: int, wanted: int | None) -> None:
    """Raises VitcoreError for a model that takes another number of channels than the data set gives."""
    if wanted is not None and wanted != has:
        raise VitcoreError(
            f"{name}: pictures have {has} channel(s) and the model takes {wanted}; "
            "choose a variant or a data set that fits the other"
        )


def open_dataset(
    name: str | Offered,
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
    """Open a data set by name, or one that a program has made (`vitcore.data.formats.arrays`).

    img_size: side of the pictures, in pixels. channels: what the model takes; None accepts what the data has.
    For pictures in files: data_path; download, fetch published files that are missing there (`DOWNLOADABLE`, hf:NAME);
    workers and loader, who decodes (0: the calling thread); bad_images, "stop" at a picture that cannot be read, "skip" or
    "replace" it; interpolation, eval_resize and eval_crop_pct, see `vitcore.data.view.View`. For synthetic only: train_size,
    eval_size, classes. Raises VitcoreError for an unknown name, and for options or files that the data set cannot use.
    """
    name = name if isinstance(name, str) else offer(name)
    opener = find_dataset(name)
    if download and name not in DOWNLOADABLE and not name.startswith(HUGGING_FACE):
        raise VitcoreError(
            f"{name}: there is nothing to download, --download serves {', '.join(DOWNLOADABLE)} and hf:NAME; leave it out"
        )
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
    check_channels(name, dataset.channels, channels)
    return dataset
