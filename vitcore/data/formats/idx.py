"""IDX files, the format of MNIST (Y. LeCun, C. Cortes, C. Burges, http://yann.lecun.com/exdb/mnist/), plain or as .gz.

A file is two zero bytes, a code of the type (8: unsigned bytes), the number of dimensions, each dimension as a big-endian
32-bit number, and the values. Fashion-MNIST, KMNIST and EMNIST come as such files too.
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vitcore.data.datasets import DatasetOptions
from vitcore.data.formats.arrays import Pictures
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.errors import VitcoreError

UNSIGNED_BYTE = 8
# What deflate can make of a byte at most.
_INFLATION = 1032
_CHUNK = 1 << 22
_PARTS = {"train": ("train",), "t10k": ("t10k", "test")}
_WANTED = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"


def open_idx(options: DatasetOptions) -> PictureSet:
    """Read the four files in `options.data_path` into memory; VitcoreError for what is missing or damaged."""
    root = options.data_path
    if root is None or not root.is_dir():
        where = "no data path" if root is None else f"{root} is not a folder"
        raise VitcoreError(f"idx: {where}; give the folder that holds {_WANTED}, plain or .gz")
    parts = []
    for names in _PARTS.values():
        images_path, labels_path = (find(root, names, what) for what in ("images", "labels"))
        images, labels = as_pictures(images_path, read_idx(images_path)), read_idx(labels_path)
        if labels.ndim != 1:
            raise VitcoreError(
                f"{labels_path}: it has {labels.ndim} dimensions, labels have one; put the right file there"
            )
        if len(labels) != len(images) or not len(labels):
            raise VitcoreError(
                f"{images_path}: {len(images)} pictures, but {len(labels)} labels in {labels_path.name}; put two files of one "
                "data set there"
            )
        parts.append(Pictures(images, labels.astype(np.int64), str(images_path)))
    channels = {path.read(0).shape[0] for path in parts}
    if len(channels) > 1:
        raise VitcoreError(
            f"idx: {root}: training and evaluation pictures differ in channels; put files of one data set there"
        )
    classes = 1 + max(int(part.labels.max()) for part in parts)
    return open_pictures(options, [str(label) for label in range(classes)], parts[0], parts[1], channels=channels.pop())


def find(root: Path, parts: tuple[str, ...], what: str) -> Path:
    """The one file of a part's images or labels; a plain one goes before its .gz. VitcoreError for none or several."""
    name = re.compile(rf"(?P<stem>(.+-)?({'|'.join(parts)})-{what}[-.]idx[134]-ubyte)(\.gz)?")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        match = name.fullmatch(path.name)
        if match and path.is_file():
            found.setdefault(match["stem"], path)
    if not found:
        raise VitcoreError(f"idx: {root} holds no {parts[0]}-{what}-idx{1 if what == 'labels' else 3}-ubyte, plain or .gz; "
                           f"put {_WANTED} there")  # fmt: skip
    if len(found) > 1:
        raise VitcoreError(f"idx: {root} holds {' and '.join(sorted(found))}; leave the files of one data set there")
    return next(iter(found.values()))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """The array of a file, of 1, 3 or 4 dimensions; VitcoreError for a file that is cut, longer than it says, or of another
    type. No more memory is taken than the file can fill."""
    try:
        size = path.stat().st_size
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                return _read(path, file, size * _INFLATION)
        with open(path, "rb") as file:
            return _read(path, file, size)
    except (OSError, EOFError, zlib.error) as error:
        raise VitcoreError(f"{path}: it cannot be read ({error}); fetch it again") from error


def _read(path: Path, file: BinaryIO | gzip.GzipFile, most: int) -> npt.NDArray[np.uint8]:
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise VitcoreError(f"{path}: it is no IDX file (it begins with {head.hex() or 'nothing'}); fetch it again")
    kind, count = head[2], head[3]
    if kind != UNSIGNED_BYTE or count not in (1, 3, 4):
        raise VitcoreError(
            f"{path}: type 0x{kind:02x} in {count} dimensions is not read; give unsigned bytes (0x08) in 1, 3 or 4"
        )
    sizes = file.read(4 * count)
    shape = tuple(int(n) for n in np.frombuffer(sizes[: len(sizes) // 4 * 4], ">u4"))
    expected = math.prod(shape)
    if len(shape) < count or expected > most:
        raise VitcoreError(
            f"{path}: it is cut off: of {'x'.join(map(str, shape))} values there is no room in it; fetch it again"
        )
    data = bytearray()
    while len(data) <= expected and (piece := file.read(min(_CHUNK, expected + 1 - len(data)))):
        data += piece
    if len(data) != expected:
        what = "is cut off" if len(data) < expected else "goes on after its end"
        raise VitcoreError(f"{path}: it {what}: its header says {'x'.join(map(str, shape))} values; fetch it again")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def as_pictures(path: Path, values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Values of a file as pictures (N, C, H, W): (N, H, W) is grey; of (N, C, H, W) or (N, H, W, C) the dimension of 1 or 3
    is that of the channels. VitcoreError where neither is, or both are."""
    if values.ndim == 3 and 0 not in values.shape[1:]:
        return values[:, None]
    first, last = values.ndim == 4 and values.shape[1] in (1, 3), values.ndim == 4 and values.shape[3] in (1, 3)
    if first == last or 0 in values.shape[1:]:
        raise VitcoreError(
            f"{path}: {'x'.join(map(str, values.shape))} values are no pictures; give (pictures, rows, columns), with 1 or 3 "
            "channels behind or before"
        )
    return values if first else values.transpose(0, 3, 1, 2)
