"""The development kit of ImageNet 2012 (ILSVRC2012_devkit_t12): which classes there are, how many training pictures each has,
and of which class each validation picture is. No torch."""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitcore.errors import VitcoreError

ARCHIVE = "ILSVRC2012_devkit_t12.tar.gz"
FOLDER = "ILSVRC2012_devkit_t12"
META = "data/meta.mat"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
# The kit's own have about 1 MB and 0.2 MB.
_LARGEST = 1 << 26
_WNID = re.compile(r"n\d{8}")


@dataclass(frozen=True)
class Devkit:
    """train: pictures of each class, by WordNet id. val: the class of each validation picture, from number 1 on."""

    train: dict[str, int]
    val: list[str]

    @property
    def val_counts(self) -> dict[str, int]:
        """Validation pictures of each class."""
        return dict(Counter(self.val))


def find_devkit(root: Path) -> Path | None:
    """The kit's archive or its unpacked folder in `root`."""
    folder = root / FOLDER
    if (folder / META).is_file() and (folder / TRUTH).is_file():
        return folder
    return root / ARCHIVE if (root / ARCHIVE).is_file() else None


def read_devkit(place: Path) -> Devkit:
    """Read it; VitcoreError where it is damaged, or scipy, which reads MATLAB's file, is not installed."""
    meta, truth = _contents(place)
    classes, counts = _classes(place, meta)
    val = []
    for number, line in enumerate(truth.split(), 1):
        wnid = classes.get(int(line)) if line.isdigit() and len(line) < 10 else None
        if wnid is None:
            raise VitcoreError(f"{place}: {TRUTH}: picture {number} is of class {line[:20]!r}, which {META} does not have; fetch "
                               f"{ARCHIVE} again")  # fmt: skip
        val.append(wnid)
    if not val:
        raise VitcoreError(f"{place}: {TRUTH} is empty; fetch {ARCHIVE} again")
    return Devkit(counts, val)


def _contents(place: Path) -> tuple[bytes, bytes]:
    held: dict[str, bytes] = {}
    try:
        if place.is_dir():
            for file in (META, TRUTH):
                with open(place / file, "rb") as opened:
                    held[file] = opened.read(_LARGEST)
        else:
            with tarfile.open(place, "r|*") as tar:
                for member in tar:
                    file = member.name.removeprefix("./").removeprefix(f"{FOLDER}/")
                    if file in (META, TRUTH) and member.isreg() and member.size <= _LARGEST:
                        content = tar.extractfile(member)
                        held[file] = b"" if content is None else content.read()
        return held[META], held[TRUTH]
    except KeyError as error:
        raise VitcoreError(f"{place}: it lacks {error.args[0]}; fetch {ARCHIVE} again") from None
    # In a damaged archive, whatever the parser stumbles over.
    except Exception as error:
        raise VitcoreError(f"{place}: it cannot be read ({error}); fetch {ARCHIVE} again") from error


def _classes(place: Path, meta: bytes) -> tuple[dict[int, str], dict[str, int]]:
    """WordNet ids by the challenge's numbers, and their training pictures; classes that have classes below them are none."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise VitcoreError(
            f"{META}: MATLAB's file is read by scipy ({error}); pip install 'vitcore[imagenet]'"
        ) from error
    try:
        synsets: Any = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        rows = [
            (int(row["ILSVRC2012_ID"]), str(row["WNID"]), int(row["num_train_images"]))
            for row in synsets.reshape(-1)
            if int(row["num_children"]) == 0
        ]
    # In a damaged file, whatever the parser stumbles over.
    except Exception as error:
        raise VitcoreError(f"{place}: {META} is not that of ImageNet 2012 ({type(error).__name__}: {error}); fetch {ARCHIVE} "
                           "again") from error  # fmt: skip
    bad = [wnid for _, wnid, _ in rows if not _WNID.fullmatch(wnid)]
    if bad or not rows or len({n for n, _, _ in rows}) < len(rows) or len({wnid for _, wnid, _ in rows}) < len(rows):
        what = f"{bad[0][:40]!r} is no WordNet id" if bad else "its classes are none, or named twice"
        raise VitcoreError(f"{place}: {META}: {what}; fetch {ARCHIVE} again")
    return {number: wnid for number, wnid, _ in rows}, {wnid: count for _, wnid, count in rows}
