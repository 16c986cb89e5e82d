"""Folders of pictures: `train/` and `val/` with one folder a class, as ImageNet is unpacked."""

from __future__ import annotations

import logging
from pathlib import Path

from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import read_file
from vitcore.data.formats.listing import Listing
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.data.formats.tree import read_tree
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

IMAGENET_CLASSES = 1000
# Names and sizes as they are published; the site asks for an account.
IMAGENET_FILES = (
    "ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6.3 GB), ILSVRC2012_devkit_t12.tar.gz (2.5 MB)"
)
IMAGENET_SITE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php"


class Files:
    """Pictures in files of their own: a `vitcore.data.source.Source`."""

    def __init__(self, listing: Listing) -> None:
        self._listing = listing

    @property
    def labels(self) -> Int64s:
        """The class of each picture."""
        return self._listing.labels

    def __len__(self) -> int:
        return len(self._listing)

    def read(self, index: int) -> bytes:
        """The file's bytes."""
        return read_file(self._listing.path(index))

    def where(self, index: int) -> str:
        """The file's path."""
        return self._listing.path(index)


def open_folder(options: DatasetOptions) -> PictureSet:
    """Read the tree under `options.data_path`; VitcoreError for what `vitcore.data.formats.tree.read_tree` refuses."""
    if options.name == "imagenet1K":
        _refuse_without_imagenet(options.data_path)
    train, val = read_tree(options.data_path, options.name)
    whole = f" of {IMAGENET_CLASSES}" if options.name == "imagenet1K" else ""
    log.info(
        "%s: %d%s classes, %d training and %d evaluation pictures in %s",
        options.name,
        len(train.class_names),
        whole,
        len(train),
        len(val),
        options.data_path,
    )
    return open_pictures(options, train.class_names, Files(train), Files(val))


def _refuse_without_imagenet(root: Path | None) -> None:
    """Raises VitcoreError, which says what is fetched from where, unless `train/` and `val/` are there."""
    if root is not None and (root / "train").is_dir() and (root / "val").is_dir():
        return
    missing = "holds no train/ and val/" if root is not None and root.is_dir() else "is not a folder"
    where = "no data path" if root is None else f"{root} {missing}"
    raise VitcoreError(
        f"imagenet1K: {where}; fetch {IMAGENET_FILES} from {IMAGENET_SITE} into one folder, run `vitcore data prepare imagenet "
        "--data_path FOLDER`, and give that folder as --data_path"
    )
