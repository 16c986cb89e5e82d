"""`vitcore data`, which is `python -m vitcore.data`: what is done with data before training. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vitcore.commandline import parse
from vitcore.errors import VitcoreError, nearest

# What there is to do, the "module:function" of one argument list that does it, and what it is.
TASKS = {
    "prepare": (
        "vitcore.data.verb:prepare",
        "sort a data set's published archives into the folders that training reads",
    ),
    "cache": ("vitcore.data.formats.cached:main", "decode and resize pictures once, into files that are read faster"),
}


def main(argv: Sequence[str]) -> int:
    """Dispatch to the task."""
    if not argv or argv[0] in ("-h", "--help"):
        width = max(map(len, TASKS))
        print("usage: vitcore data TASK [flags]; vitcore data TASK --help shows its flags\n")
        print("\n".join(f"  {task:<{width}}  {what}" for task, (_, what) in TASKS.items()))
        return 0
    if argv[0] not in TASKS:
        raise VitcoreError(
            f"{argv[0]!r} is nothing to do with data{nearest(argv[0], [*TASKS])}; see vitcore data --help"
        )
    module, _, function = TASKS[argv[0]][0].partition(":")
    code: int = getattr(import_module(module), function)(argv[1:])
    return code


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """Which data set's archives, and where they are."""

    dataset: Annotated[Literal["imagenet"], tyro.conf.Positional]
    """imagenet: ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz, or what they unpack to."""
    data_path: str
    """Folder that holds them; train/ and val/ are made in it, and the archives are left."""


def prepare(argv: Sequence[str]) -> int:
    """Sort, count, and say what there is."""
    asked = parse(Prepare, argv, "vitcore data prepare", prepare.__doc__ or "")
    from vitcore.data.imagenet import prepare_imagenet

    found = prepare_imagenet(Path(asked.data_path))
    print(f"{asked.data_path}: train/ {found.train:,} and val/ {found.val:,} pictures of {found.classes:,} classes, as "
          f"published; train with --dataset imagenet1K --data_path {asked.data_path}")  # fmt: skip
    return 0
