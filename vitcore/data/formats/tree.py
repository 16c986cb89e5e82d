"""Reading the tree of a folder data set: `train/` and `val/`, one folder a class. No pictures are opened here."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True)
class PictureList:
    """The pictures of one split: `paths[i]` shows class `labels[i]` of `class_names`."""

    class_names: list[str]
    paths: list[str]
    labels: list[int]


def read_tree(root: Path | None, name: str) -> tuple[PictureList, PictureList]:
    """The lists of `train/` and `val/` under `root`, in sorted order.

    Raises VitcoreError for a missing folder, a class without pictures, and for splits whose classes differ; `name` is
    the data set's, for the message.
    """
    if root is None:
        raise VitcoreError(f"{name}: no data path; give the folder that holds train/ and val/")
    if not root.is_dir():
        raise VitcoreError(f"{name}: {root} is not a folder; give the one that holds train/ and val/")
    train, val = (_read_split(root / part, name) for part in ("train", "val"))
    only_train = sorted(set(train.class_names) - set(val.class_names))
    only_val = sorted(set(val.class_names) - set(train.class_names))
    if only_train or only_val:
        differences = [
            f"{_few(names)} only in {part}/" for names, part in ((only_train, "train"), (only_val, "val")) if names
        ]
        raise VitcoreError(
            f"{name}: {root}: train/ and val/ have different classes ({'; '.join(differences)}); "
            "give both the same class folders"
        )
    return train, val


def _read_split(folder: Path, name: str) -> PictureList:
    if not folder.is_dir():
        raise VitcoreError(
            f"{name}: {folder} is missing; give a data folder that holds train/ and val/, each with a folder a class"
        )
    # sorted() gives every machine the same labels and order; the file system's own order differs.
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise VitcoreError(
            f"{name}: {folder} holds no class folders; put the pictures of each class in a folder of its own"
        )
    kinds = ", ".join(EXTENSIONS)
    paths: list[str] = []
    labels: list[int] = []
    others = 0
    for label, class_name in enumerate(classes):
        found, ignored = _pictures(folder / class_name)
        if not found:
            raise VitcoreError(
                f"{name}: {folder / class_name} holds no pictures ({kinds}); add some or remove the folder"
            )
        paths += found
        labels += [label] * len(found)
        others += ignored
    if others:
        log.warning("%s: %s: %d files are not pictures (%s) and are left out", name, folder, others, kinds)
    return PictureList(classes, paths, labels)


def _pictures(folder: Path) -> tuple[list[str], int]:
    """Sorted paths of the pictures under `folder`, at any depth, and the number of other files; without hidden ones."""
    paths: list[str] = []
    others = 0
    for parent, _, file_names in os.walk(folder, followlinks=True):
        for file_name in file_names:
            if file_name.startswith("."):
                continue
            if file_name.lower().endswith(EXTENSIONS):
                paths.append(os.path.join(parent, file_name))
            else:
                others += 1
    return sorted(paths), others


def _few(names: list[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
