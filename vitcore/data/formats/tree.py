"""Reading the tree of a folder data set: `train/` and `val/`, one folder a class. No pictures are opened here."""

import logging
from pathlib import Path

from vitcore.data.formats.listing import Listing, list_split
from vitcore.data.formats.walk import EXTENSIONS, Disk, LocalDisk
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")


def read_tree(root: Path | None, name: str, disk: Disk | None = None) -> tuple[Listing, Listing]:
    """The pictures of `train/` and `val/` under `root`, in sorted order.

    Raises VitcoreError for a missing folder, a class without pictures, and for splits whose classes differ; `name` is
    the data set's, for the message. `disk` is the file system, the machine's own where it is None.
    """
    if root is None:
        raise VitcoreError(f"{name}: no data path; give the folder that holds train/ and val/")
    if disk is None and not root.is_dir():
        raise VitcoreError(f"{name}: {root} is not a folder; give the one that holds train/ and val/")
    train, val = (_read_split(root, part, name, disk or LocalDisk()) for part in ("train", "val"))
    _same_classes(name, root, train.class_names, val.class_names)
    return train, val


def _same_classes(name: str, root: Path, train: list[str], val: list[str]) -> None:
    """Raises VitcoreError, which names them, where the two splits have different classes."""
    only_train, only_val = sorted(set(train) - set(val)), sorted(set(val) - set(train))
    if only_train or only_val:
        differences = [
            f"{_few(names)} only in {part}/" for names, part in ((only_train, "train"), (only_val, "val")) if names
        ]
        raise VitcoreError(
            f"{name}: {root}: train/ and val/ have different classes ({'; '.join(differences)}); "
            "give both the same class folders"
        )


def _read_split(root: Path, part: str, name: str, disk: Disk) -> Listing:
    folder = root / part
    try:
        # sorted() gives every machine the same labels and order; the file system's own order differs.
        entries = disk.scan(str(folder))
        classes = sorted(entry for entry, is_folder in entries if is_folder and not entry.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        raise VitcoreError(
            f"{name}: {folder} is missing; give a data folder that holds train/ and val/, each with a folder a class"
        ) from None
    except OSError as error:
        raise VitcoreError(f"{name}: {folder} cannot be listed ({error.strerror}); make it readable") from error
    if not classes:
        raise VitcoreError(
            f"{name}: {folder} holds no class folders; put the pictures of each class in a folder of its own"
        )
    kinds = ", ".join(EXTENSIONS)
    listing = list_split(root, part, classes, disk)
    for about in listing.index.facts["classes"]:
        if not about["pictures"]:
            raise VitcoreError(
                f"{name}: {folder / about['name']} holds no pictures ({kinds}); add some or remove the folder"
            )
    if listing.others:
        log.warning("%s: %s: %d files are not pictures (%s) and are left out", name, folder, listing.others, kinds)
    return listing


def _few(names: list[str], limit: int = 5) -> str:
    """The first names, quoted, and how many more there are."""
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
