"""A run over a thousand picture files with faults of every kind: it ends, names each that cannot be read, and no other."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corruption import KINDS, can_be_read, write

from vitcore.data.decode import UnreadablePicture, decode, picture_into, read_file
from vitcore.data.view import View

BATCH, VAL, SEED = 20, 40, 7
VIEW = View(size=(16, 16))
# With torch 400 MiB are held before the first picture; the largest of these files announces 10^18 pixels.
MOST_MEMORY = 1200 << 10  # KiB
RUN = (
    "train --dataset folder --data_path tree --pretrained_dir None --model_type ViT-Ti_16 --img_size 16 --threads 1 "
    "--learning_rate 0.01 --eval_every 0 --warmup_steps 0 --eval_batch_size 20 --backend cpu --json"
)
CODE = """
import re, resource, sys
from vitcore import cli
code = cli.main(sys.argv[1:])
# Of this process alone: its own ru_maxrss begins with the peak of the process that started it.
own = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its result, the files that it named, in order, its most memory in KiB, and all it said."""

    result: dict[str, Any]
    named: list[str]
    memory: int
    said: str


def run(folder: Path, count: int, *argv: str) -> Ended:
    """Two epochs over the tree in `folder`, in a process of its own."""
    steps = str(2 * count // BATCH)
    done = subprocess.run(
        [sys.executable, "-c", CODE, *RUN.split(), "--train_batch_size", str(BATCH), "--num_steps", steps, *argv],
        cwd=folder, env={k: v for k, v in os.environ.items() if not k.startswith("VITCORE_")}, capture_output=True,
        text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    *_, result, memory = done.stdout.splitlines()
    named = re.findall(r"tree/((?:train|val)/\S+): not a readable picture \(", done.stderr)
    return Ended(json.loads(result), named, max(map(int, memory.split())), done.stderr)


def tree(folder: Path, bad: int, good: int) -> tuple[set[str], int]:
    """A data folder of such files; which cannot be read, and how many of the evaluation's can."""
    train = write(folder / "tree" / "train", range(bad), good, SEED)
    val = write(folder / "tree" / "val", range(30, 30 + VAL), 0, SEED + 1)
    return {f"train/{name}" for name in train} | {f"val/{name}" for name in val}, VAL - len(val)


def check(ended: Ended, unreadable: set[str], readable_val: int, count: int) -> None:
    assert ended.result["steps"] == 2 * count // BATCH and np.isfinite(ended.result["loss"])
    assert set(ended.named) == unreadable
    assert max(Counter(ended.named).values()) == 1, "named once, though the second epoch meets each again"
    assert f"{len(unreadable)} image file(s) could not be read" in ended.said
    assert ended.result["total"] == readable_val
    assert ended.memory < MOST_MEMORY, f"{ended.memory >> 10} MiB"


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], int]:
    """A folder with a tree of 120 files for training, and what `tree` says of it."""
    folder = tmp_path_factory.mktemp("corrupted")
    return folder, *tree(folder, 90, 30)


@pytest.mark.parametrize("how", ["skip", "replace"])
def test_a_run_over_files_with_every_fault_ends_and_names_what_it_cannot_read(
    how: str, every_kind: tuple[Path, set[str], int]
) -> None:
    folder, unreadable, readable_val = every_kind
    assert len(KINDS) <= 90 and 30 < len(unreadable) < 120
    check(run(folder, 120, "--bad_images", how, "--workers", "2", "--name", how), unreadable, readable_val, 120)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["skip", "replace"])
@pytest.mark.parametrize("loader", ["threads", "processes"])
def test_a_thousand_corrupted_files_end_no_run(how: str, loader: str, tmp_path: Path) -> None:
    """Among 540 good ones. Replacing gives up where ten that are drawn in a row cannot be read either."""
    count = 1600
    unreadable, readable_val = tree(tmp_path, 1060, 540)
    assert sum(not KINDS[i % len(KINDS)].name.startswith("whole") for i in range(1060)) >= 1000
    ended = run(tmp_path, count, "--bad_images", how, "--workers", "2", "--loader", loader)
    check(ended, unreadable, readable_val, count)


@pytest.mark.parametrize("kind", [k for k in KINDS if k.reads != "depends"], ids=lambda kind: kind.name)
def test_each_kind_is_read_or_not_as_it_says(kind: Any) -> None:
    out = torch.zeros(VIEW.channels, *VIEW.size, dtype=torch.uint8)
    for seed in range(3):
        data = kind.make(np.random.default_rng([99, seed]))
        if data is None:
            with pytest.raises(UnreadablePicture, match="No such file"):
                read_file("/nowhere/at/all.jpg")
        elif kind.reads == "yes":
            assert can_be_read(data) and len(decode(data)) == 3
            picture_into(out, data, VIEW)
            assert out.any(), "it is not left black"
        else:
            assert not can_be_read(data)
            for read in (decode, lambda data: picture_into(out, data, VIEW)):
                with pytest.raises(UnreadablePicture) as refused:
                    read(data)
                assert str(refused.value) and "\n" not in str(refused.value)
