"""Data sets of Hugging Face's `datasets`: `hf:NAME` and `hf:NAME:CONFIG`, from the hub's cache or from a folder.

NAME is a data set of the hub, or a folder; with a data path it is what the folder there is called. A folder is what
`save_to_disk` wrote, or what `load_dataset` reads: an image folder, parquet files. Pictures stay encoded and are decoded as all
others are. Nothing is fetched unless `download` says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vitcore.data.datasets import HUGGING_FACE, DatasetOptions
from vitcore.data.decode import UnreadablePicture, read_file
from vitcore.data.formats.opened import PictureSet, open_pictures
from vitcore.data.order import Int64s
from vitcore.errors import VitcoreError

# What a split for evaluation is called, best first, and what columns are called where several are of the type.
EVALUATION = ("validation", "val", "valid", "dev", "test")
PICTURE_NAMES = ("image", "img", "jpg", "picture")
LABEL_NAMES = ("label", "labels", "fine_label")


class Rows:
    """The rows of a split: a `vitcore.data.source.Source`. The table is memory-mapped, and so is its pickle's."""

    def __init__(self, table: Any, picture: str, labels: Int64s, name: str) -> None:
        self._table, self._picture, self.labels, self._name = table, picture, labels, name

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        """The encoded picture, from the table or from the file that it names."""
        held = self._table[int(index)][self._picture]
        if held is None or (held.get("bytes") is None and not held.get("path")):
            raise UnreadablePicture("the row has no picture")
        if held.get("bytes") is not None:
            data: bytes = held["bytes"]
            return data
        return read_file(held["path"])

    def where(self, index: int) -> str:
        """The split and the row, and the file's name where it is known."""
        held = self._table[int(index)][self._picture] or {}
        return f"{self._name}: row {index}" + (f" ({held['path']})" if held.get("path") else "")


def open_hf(options: DatasetOptions) -> PictureSet:
    """Open the two splits; VitcoreError where the package, the data, a split or a column is missing."""
    name, _, config = options.name.removeprefix(HUGGING_FACE).partition(":")
    held = _load(options, name, config or None)
    if "train" not in held:
        raise VitcoreError(
            f"{options.name}: it has no split 'train', only {_quoted(held)}; choose another data set or config"
        )
    evaluation = next((split for split in EVALUATION if split in held), None)
    if evaluation is None:
        raise VitcoreError(f"{options.name}: it has no split to evaluate on ({', '.join(EVALUATION)}), only {_quoted(held)}; "
                           "choose another data set, or split it and save it with save_to_disk")  # fmt: skip
    names, train = _rows(options.name, "train", held["train"])
    their_names, val = _rows(options.name, evaluation, held[evaluation])
    if names != their_names:
        raise VitcoreError(
            f"{options.name}: the splits 'train' and {evaluation!r} have different classes; give both the same"
        )
    return open_pictures(options, names, train, val)


def _load(options: DatasetOptions, name: str, config: str | None) -> Any:
    datasets = _package(options.name)
    folder = options.data_path or (Path(name) if Path(name).is_dir() else None)
    if folder is not None and not folder.is_dir():
        raise VitcoreError(
            f"{options.name}: {folder} is not a folder; give one that save_to_disk wrote, or leave --data_path out"
        )
    try:
        with _network(datasets, options.download):
            if folder is not None and (folder / "dataset_dict.json").is_file():
                return datasets.load_from_disk(str(folder))
            return datasets.load_dataset(str(folder) if folder is not None else name, config)
    # From files of any kind, through a library of many parts, whatever it stumbles over.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if folder is not None:
            raise VitcoreError(f"{options.name}: {folder} is no data set that `datasets` opens ({reason}); give a folder that "
                               "save_to_disk wrote, or of pictures or parquet files with splits") from error  # fmt: skip
        remedy = (
            "check the name and the network" if options.download
            else "add --download to fetch it from the hub, or give a folder of it as --data_path"
        )  # fmt: skip
        raise VitcoreError(f"{options.name}: it could not be opened ({reason}); {remedy}") from error


@contextmanager
def _network(datasets: Any, allowed: bool) -> Iterator[None]:
    """With or without a way to the hub, whatever the libraries read from the environment when they were imported; nobody's
    own wish to be offline is overruled."""
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if not allowed:
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    bars = not allowed and not datasets.are_progress_bars_disabled()
    if bars:  # of reading what is here; in a log they are a line each
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
        if bars:
            datasets.enable_progress_bars()


def _package(name: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise VitcoreError(f"{name}: this needs the package datasets ({error}); pip install 'vitcore[hf]'") from error
    return datasets


def _rows(name: str, split: str, table: Any) -> tuple[list[str], Rows]:
    """The class names and the rows of a split."""
    datasets = _package(name)
    where, features = f"{name}: split {split!r}", table.features
    picture = _column(where, features, datasets.Image, "pictures (Image)", PICTURE_NAMES)
    label = _column(where, features, datasets.ClassLabel, "classes (ClassLabel)", LABEL_NAMES)
    values = table.with_format("numpy", columns=[label])[:][label]
    try:
        labels = np.asarray(values).astype(np.int64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise VitcoreError(f"{where}: column {label!r} lacks classes; leave such rows out") from error
    names = list(features[label].names)
    if not len(labels) or labels.min() < 0 or labels.max() >= len(names):
        bad = "no rows" if not len(labels) else f"label {labels.min() if labels.min() < 0 else labels.max()}"
        raise VitcoreError(f"{where}: it has {bad}, classes are 0 to {len(names) - 1} (-1 where they are kept secret); choose a "
                           "split with labels")  # fmt: skip
    plain = table.select_columns([picture]).cast_column(picture, datasets.Image(decode=False)).with_format(None)
    return names, Rows(plain, picture, labels, f"{name}[{split}]")


def _column(where: str, features: Any, kind: type, what: str, preferred: tuple[str, ...]) -> str:
    """The one column of a type; of several, the one with the name that is preferred."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    named = [column for column in preferred if column in found]
    if len(found) == 1 or named:
        return found[0] if len(found) == 1 else named[0]
    listed = ", ".join(f"{column} ({type(feature).__name__})" for column, feature in features.items())
    have = "several columns" if found else "no column"
    raise VitcoreError(
        f"{where}: it has {have} of {what}: {listed}; cast or rename one with `datasets` and save_to_disk"
    )


def _quoted(held: Any) -> str:
    return ", ".join(repr(str(split)) for split in held)
