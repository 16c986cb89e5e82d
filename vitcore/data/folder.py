"""Folders of pictures: `train/` and `val/` with one folder a class, as ImageNet is unpacked."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import Augment, draw_crops
from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import UnreadablePicture, read_picture
from vitcore.data.order import Int64s
from vitcore.data.tree import PictureList, read_tree
from vitcore.data.warp import augment_reals, flip_batch
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

IMAGENET_CLASSES = 1000


class FolderSplit:
    """The pictures of `train/` or `val/`, decoded when they are asked for: uint8 RGB, or float32 when warped.

    A picture that cannot be read stops the run (VitcoreError), or, with `skip_bad`, is a zero picture of weight 0; its
    path is logged once.
    """

    def __init__(self, pictures: PictureList, img_size: int, skip_bad: bool, pool: ThreadPoolExecutor | None) -> None:
        # Arrays and not lists: a million boxed labels would cost more than the paths.
        self._paths = np.array(pictures.paths, dtype=object)
        self._labels = np.array(pictures.labels, dtype=np.int64)
        self._img_size = img_size
        self._skip_bad = skip_bad
        self._pool = pool
        self._bad: set[str] = set()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def bad_images(self) -> int:
        """Files that could not be read so far, each counted once."""
        return len(self._bad)

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `vitcore.data.datasets.Split.load`. Without a crop the whole picture is resized to the square."""
        share = None if augment is None else augment.crop
        draws = draw_crops(seed, positions) if share is not None else None
        images = torch.zeros((len(indices), 3, self._img_size, self._img_size), dtype=torch.uint8)
        weight = torch.ones(len(indices))
        for row, picture in enumerate(self._decoded(self._paths[indices], draws, share)):
            if picture is None:
                weight[row] = 0.0
            else:
                images[row] = picture
        if augment is not None and augment.flip:
            images = flip_batch(images, seed, positions)
        if augment is not None and augment.of_reals:
            images = augment_reals(images.float() / 255.0, seed, positions, augment) * 2.0 - 1.0
        return images, torch.from_numpy(self._labels[indices]), weight

    def _decoded(
        self, paths: npt.NDArray[np.object_], draws: npt.NDArray[np.float64] | None, share: tuple[float, float] | None
    ) -> Iterable[Tensor | None]:
        """The pictures in the order of `paths`, None for one that is skipped."""

        def decode(row: int) -> Tensor | None:
            return self._picture(paths[row], None if draws is None else draws[row], share)

        return map(decode, range(len(paths))) if self._pool is None else self._pool.map(decode, range(len(paths)))

    def _picture(
        self, path: str, draws: npt.NDArray[np.float64] | None, share: tuple[float, float] | None
    ) -> Tensor | None:
        try:
            return read_picture(path, self._img_size, draws, share)
        except UnreadablePicture as error:
            if not self._skip_bad:
                raise VitcoreError(
                    f"{path}: not a readable picture ({error}); replace or remove the file, "
                    'or set bad_images to "skip" to train without it'
                ) from error
            if path not in self._bad:
                self._bad.add(path)
                log.warning("%s: not a readable picture (%s); skipped", path, error)
            return None


@dataclass(frozen=True)
class Folder:
    """`folder` or `imagenet1K`."""

    name: str
    class_names: list[str]
    train: FolderSplit
    eval: FolderSplit
    channels: int = 3

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def open_folder(options: DatasetOptions) -> Folder:
    """Read the tree under `options.data_path`; VitcoreError for what `vitcore.data.tree.read_tree` refuses."""
    train, val = read_tree(options.data_path, options.name)
    whole = f" of {IMAGENET_CLASSES}" if options.name == "imagenet1K" else ""
    log.info(
        "%s: %d%s classes, %d training and %d evaluation pictures in %s",
        options.name,
        len(train.class_names),
        whole,
        len(train.paths),
        len(val.paths),
        options.data_path,
    )
    pool = ThreadPoolExecutor(options.workers, thread_name_prefix="vitcore-decode") if options.workers else None
    skip = options.bad_images == "skip"
    return Folder(
        name=options.name,
        class_names=train.class_names,
        train=FolderSplit(train, options.img_size, skip, pool),
        eval=FolderSplit(val, options.img_size, skip, pool),
    )
