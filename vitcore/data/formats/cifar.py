"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009) as their author
publishes them: the binary or the Python archive, packed or unpacked. An archive is read where it lies and never unpacked.

A record of the binary form is a byte for each label (CIFAR-100: the coarse one, then the fine one, which is the class) and
3072 of a picture, channel by channel, row by row. The Python form is pickles of the same, read by `formats.pickled`.
"""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vitcore.data.datasets import DatasetOptions
from vitcore.data.formats.arrays import Pictures
from vitcore.data.formats.download import Published, fetch
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.data.formats.pickled import PickledArray, Refused, read_pickle
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

PIXELS = (3, 32, 32)
_PICTURE = 3 * 32 * 32
# The largest file of the archives, CIFAR-100's training pickle, has 155 MB.
_LARGEST = 1 << 28
_SITE = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Form:
    """One published form: its archive, the folder in it, and the files of each split."""

    published: Published
    folder: str
    train: tuple[str, ...]
    test: str
    names: str
    pickled: bool


@dataclass(frozen=True)
class Layout:
    """A data set: its classes, the label bytes of a record, the records of a training and of the test file, its forms."""

    classes: int
    label_bytes: int
    train_records: int
    test_records: int
    labels_key: bytes
    names_key: bytes
    forms: tuple[Form, ...]


_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
LAYOUTS = {
    "cifar10": Layout(
        10, 1, 10_000, 10_000, b"labels", b"label_names",
        (
            Form(Published(f"{_SITE}/cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530"),
                 "cifar-10-batches-bin", tuple(f"{b}.bin" for b in _BATCHES), "test_batch.bin", "batches.meta.txt", False),
            Form(Published(f"{_SITE}/cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a"),
                 "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", True),
        ),
    ),
    "cifar100": Layout(
        100, 2, 50_000, 10_000, b"fine_labels", b"fine_label_names",
        (
            Form(Published(f"{_SITE}/cifar-100-binary.tar.gz", 168_513_733, "03b5dce01913d631647c71ecec9e9cb8"),
                 "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt", False),
            Form(Published(f"{_SITE}/cifar-100-python.tar.gz", 169_001_437, "eb9058c3a382ffc7106e4002c42a8d85"),
                 "cifar-100-python", ("train",), "test", "meta", True),
        ),
    ),
}  # fmt: skip


def open_cifar(options: DatasetOptions) -> PictureSet:
    """Read the data set in `options.data_path` into memory, 184 MB; VitcoreError for what is missing or damaged."""
    layout = LAYOUTS[options.name]
    form, place = _find(options, layout)
    held = _members(place, form) if place.is_file() else _files(place, form)
    origin = {file: f"{place}: {form.folder}/{file}" if place.is_file() else str(place / file) for file in held}
    names = _class_names(layout, form, origin[form.names], held[form.names])
    train = [_records(layout, form, origin[f], held.pop(f), layout.train_records) for f in form.train]
    images, labels = np.concatenate([t[0] for t in train]), np.concatenate([t[1] for t in train])
    test_images, test_labels = _records(layout, form, origin[form.test], held.pop(form.test), layout.test_records)
    test_origin = origin[form.test]
    return open_pictures(options, names, Pictures(images, labels, f"{place} train"),
                         Pictures(test_images, test_labels, test_origin))  # fmt: skip


def _find(options: DatasetOptions, layout: Layout) -> tuple[Form, Path]:
    """The form that is there, and its unpacked folder or its archive; unpacked goes before packed, binary before Python."""
    root, first = options.data_path, layout.forms[0]
    wanted = " or ".join(str(form.published) for form in layout.forms)
    if root is None:
        raise VitcoreError(f"{options.name}: no data path; give the folder that holds {wanted}, packed or unpacked, or add "
                           "--download to fetch the first into it")  # fmt: skip
    for form in layout.forms:
        for folder in (root / form.folder, root):
            if (folder / form.test).is_file() and (folder / form.names).is_file():
                return form, folder
    for form in layout.forms:
        if (root / form.published.file_name).is_file():
            return form, root / form.published.file_name
    if options.download:
        return first, fetch(options.name, first.published, root)
    raise VitcoreError(f"{options.name}: {root} holds no files of it; put {wanted} there, packed or unpacked, or add "
                       "--download to fetch the first")  # fmt: skip


def _files(folder: Path, form: Form) -> dict[str, bytes]:
    held = {}
    for file in (form.names, *form.train, form.test):
        path = folder / file
        try:
            if path.stat().st_size > _LARGEST:
                raise VitcoreError(f"{path}: it is larger than any file of CIFAR; fetch {form.published} again")
            held[file] = path.read_bytes()
        except OSError as error:
            raise VitcoreError(
                f"{path}: it cannot be read ({error.strerror or error}); fetch {form.published} again"
            ) from error
    return held


def _members(archive: Path, form: Form) -> dict[str, bytes]:
    wanted = {f"{form.folder}/{file}": file for file in (form.names, *form.train, form.test)}
    held: dict[str, bytes] = {}
    again = f"fetch {form.published} again"
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                if member.size > _LARGEST:
                    raise VitcoreError(f"{archive}: {member.name!r} is larger than any file of CIFAR; {again}")
                file = wanted.get(member.name.removeprefix("./"))
                content = tar.extractfile(member) if file and member.isreg() else None
                if file and content is not None:
                    held[file] = content.read()
                if len(held) == len(wanted):
                    return held
    except VitcoreError:
        raise
    # In a damaged archive, whatever the parser stumbles over.
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError, MemoryError) as error:
        raise VitcoreError(f"{archive}: it is no whole archive ({error}); {again}") from error
    missing = ", ".join(name for name, file in wanted.items() if file not in held)
    raise VitcoreError(f"{archive}: it lacks {missing}; {again}")


def _class_names(layout: Layout, form: Form, origin: str, content: bytes) -> list[str]:
    if form.pickled:
        names = _unpickled(form, origin, content).get(layout.names_key)
        lines = names if isinstance(names, list) else []
    else:
        lines = [line for line in content.splitlines() if line.strip()]
    texts = [line.decode("utf-8", "replace").strip() for line in lines if isinstance(line, bytes)]
    if len(texts) != layout.classes or len(lines) != layout.classes:
        raise VitcoreError(
            f"{origin}: it names {len(texts)} classes, not {layout.classes}; fetch {form.published} again"
        )
    return texts


def _records(
    layout: Layout, form: Form, origin: str, content: bytes, count: int
) -> tuple[npt.NDArray[np.uint8], Int64s]:
    """Pictures (count, 3, 32, 32) and labels (count,) of one file."""
    if form.pickled:
        images, labels = _of_pickle(layout, form, origin, content, count)
    else:
        record = layout.label_bytes + _PICTURE
        if len(content) != count * record:
            raise VitcoreError(f"{origin}: it has {len(content)} bytes, {count} records have {count * record}; fetch "
                               f"{form.published} again")  # fmt: skip
        table = np.frombuffer(content, np.uint8).reshape(count, record)
        images, labels = table[:, layout.label_bytes :], table[:, layout.label_bytes - 1].astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < layout.classes):
        bad = int(np.flatnonzero((labels < 0) | (labels >= layout.classes))[0])
        raise VitcoreError(f"{origin}: picture {bad} has label {labels[bad]}, classes are 0 to {layout.classes - 1}; fetch "
                           f"{form.published} again")  # fmt: skip
    return images.reshape(count, *PIXELS), labels


def _of_pickle(
    layout: Layout, form: Form, origin: str, content: bytes, count: int
) -> tuple[npt.NDArray[np.uint8], Int64s]:
    held = _unpickled(form, origin, content)
    data, labels = held.get(b"data"), held.get(layout.labels_key)
    shape = data.values.shape if isinstance(data, PickledArray) else None
    if not isinstance(data, PickledArray) or shape != (count, _PICTURE):
        raise VitcoreError(
            f"{origin}: its pictures are of shape {shape}, not {(count, _PICTURE)}; fetch {form.published} again"
        )
    if not isinstance(labels, list) or len(labels) != count or not _all_small(labels):
        raise VitcoreError(f"{origin}: its labels are no list of {count} classes; fetch {form.published} again")
    return data.values, np.array(labels, dtype=np.int64)


def _all_small(labels: Iterable[object]) -> bool:
    return all(type(label) is int and abs(label) < 1 << 31 for label in labels)


def _unpickled(form: Form, origin: str, content: bytes) -> dict[bytes, object]:
    try:
        return read_pickle(content)
    except Refused as error:
        raise VitcoreError(f"{origin}: it is not CIFAR's pickle ({error}); fetch {form.published} again") from error
