"""Folders of pictures: `train/` and `val/` with one folder a class, as ImageNet is unpacked."""

import logging
from dataclasses import dataclass

import numpy as np

from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import UnreadablePicture
from vitcore.data.formats.tree import PictureList, read_tree
from vitcore.data.pictures import PictureSplit

log = logging.getLogger("vitcore")

IMAGENET_CLASSES = 1000


class Files:
    """Pictures in files of their own: a `vitcore.data.source.Source`."""

    def __init__(self, pictures: PictureList) -> None:
        # Arrays and not lists: a million boxed labels would cost more than the paths.
        self._paths = np.array(pictures.paths, dtype=object)
        self.labels = np.array(pictures.labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        try:
            with open(self._paths[index], "rb") as file:
                return file.read()
        except OSError as error:
            raise UnreadablePicture(error.strerror or str(error)) from error

    def where(self, index: int) -> str:
        """The file's path."""
        path: str = self._paths[index]
        return path


@dataclass(frozen=True)
class Folder:
    """`folder` or `imagenet1K`."""

    name: str
    class_names: list[str]
    train: PictureSplit
    eval: PictureSplit
    channels: int = 3

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def open_folder(options: DatasetOptions) -> Folder:
    """Read the tree under `options.data_path`; VitcoreError for what `vitcore.data.formats.tree.read_tree` refuses."""
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
    return Folder(
        name=options.name,
        class_names=train.class_names,
        train=PictureSplit(Files(train), options),
        eval=PictureSplit(Files(val), options),
    )
