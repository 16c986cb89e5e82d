"""Folders of pictures that are not as they should be: a tree with a fault, and files that cannot be read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.io import encode_jpeg

from vitcore import cli
from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.feed import Feed

CLASSES, TRAIN, VAL, SIDE = ("cat", "dog"), 4, 2, 16
RUN = (
    "--dataset folder --data_path tree --pretrained_dir None --model_type ViT-Ti_16 --img_size 16 --learning_rate 0.01 "
    "--threads 1 --num_steps 2 --train_batch_size 8 --eval_batch_size 3 --eval_every 0 --warmup_steps 0 --workers 0"
)
Refuse = Callable[..., str]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`train/` and `val/` with two classes of small JPEGs."""
    for part, count in (("train", TRAIN), ("val", VAL)):
        for label, name in enumerate(CLASSES):
            folder = tmp_path / "tree" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                generator = torch.Generator().manual_seed(10 * label + i)
                picture = torch.randint(0, 256, (3, 20, 24), generator=generator, dtype=torch.uint8)
                (folder / f"{i}.jpg").write_bytes(bytes(encode_jpeg(picture).numpy()))
    return tmp_path / "tree"


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:150])
    return path


@pytest.fixture
def refuse(capsys: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Refuse:
    """The line with which `vitcore train RUN ARGS...` is refused."""
    monkeypatch.setenv("VITCORE_DEBUG", "0")
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> str:
        code = cli.main(["train", *RUN.split(), *argv])
        out, err = capsys.readouterr()
        assert code == 2 and not out and "Traceback" not in err, (code, out, err)
        assert err.count("error: ") == 1 and err.splitlines()[-1].startswith("vitcore: error: "), err
        return str(err.splitlines()[-1]).removeprefix("vitcore: error: ")

    return call


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (lambda tree: shutil.rmtree(tree), "folder: tree is not a folder; give the one that holds train/ and val/"),
        (lambda tree: shutil.rmtree(tree / "train"), "folder: tree/train is missing; give a data folder that holds "),
        (lambda tree: shutil.rmtree(tree / "val"), "folder: tree/val is missing; give a data folder that holds "),
        (lambda tree: (tree / "train" / "emu").mkdir(), "folder: tree/train/emu holds no pictures (.jpg, .jpeg, "),
        (lambda tree: [shutil.rmtree(p) for p in (tree / "val").iterdir()], "folder: tree/val holds no class folders; "),
        (lambda tree: (tree / "val" / "dog").rename(tree / "val" / "emu"),
         "folder: tree: train/ and val/ have different classes ('dog' only in train/; 'emu' only in val/); "),
        (lambda tree: shutil.rmtree(tree / "val" / "dog"),
         "folder: tree: train/ and val/ have different classes ('dog' only in train/); "),
    ],
)  # fmt: skip
def test_a_fault_of_the_tree_is_named(fault: Callable[[Path], Any], line: str, tree: Path, refuse: Refuse) -> None:
    fault(tree)
    assert refuse().startswith(line)


def test_no_folder_and_too_few_pictures_are_refused(tree: Path, refuse: Refuse) -> None:
    assert refuse("--data_path", "None").startswith("folder: no data path; give the folder that holds train/ and val/")
    assert refuse("--train_batch_size", "16").startswith("8 training pictures do not fill one global batch of 16; ")
    assert refuse("--img_size", "8").startswith("ViT-Ti_16: img_size 8")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_picture_stops_the_run_that_is_to_stop_and_is_named(
    workers: str, tree: Path, refuse: Refuse
) -> None:
    truncate(tree / "train" / "cat" / "1.jpg")
    line = refuse("--workers", workers)
    assert line.startswith("tree/train/cat/1.jpg: not a readable picture (") and "replace or remove the file" in line
    assert '"skip"' in line


def test_an_unreadable_picture_for_evaluation_stops_the_run_too(tree: Path, refuse: Refuse) -> None:
    (tree / "val" / "dog" / "0.jpg").write_bytes(b"not a picture")
    assert refuse().startswith("tree/val/dog/0.jpg: not a readable picture (")


def test_skipped_pictures_are_named_counted_and_weigh_nothing_in_training_and_evaluation(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [truncate(tree / "train" / "cat" / "1.jpg"), truncate(tree / "val" / "dog" / "0.jpg")]
    bad[1].write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-m", "vitcore", "train", *RUN.split(), "--bad-images", "skip", "--name", "skipped", "--json"],
        cwd=tmp_path, env={k: v for k, v in os.environ.items() if not k.startswith("VITCORE_")}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result, said = json.loads(done.stdout.splitlines()[-1]), done.stderr
    assert (result["steps"], result["total"]) == (2, 2 * VAL - 1), "the picture that was skipped is in no count"
    for path in bad:
        lines = [
            line for line in said.splitlines() if f"{path.relative_to(tmp_path)}: not a readable picture (" in line
        ]
        assert len(lines) == 1 and lines[0].endswith("; skipped"), "named once, though each epoch meets it again"
    assert "2 image file(s) could not be read and were left out" in said.splitlines()

    monkeypatch.chdir(tmp_path)
    assert cli.main(["evaluate", "--checkpoint", "output/skipped", "--json"]) == 0
    out, said = capsys.readouterr()
    again = json.loads(out.splitlines()[-1])
    keys = ("accuracy", "correct", "total", "loss")
    assert {k: again[k] for k in keys} == {k: result[k] for k in keys} and again["bad_images"] == 1
    assert caplog.text.count("tree/val/dog/0.jpg: not a readable picture (") == 1
    assert "vitcore: 1 image file(s) could not be read and were left out" in said.splitlines()


def test_a_row_of_a_skipped_picture_has_weight_0_in_its_batch(tree: Path) -> None:
    truncate(tree / "train" / "cat" / "1.jpg")
    truncate(tree / "val" / "dog" / "0.jpg")
    dataset = open_dataset("folder", img_size=SIDE, channels=3, data_path=tree, bad_images="skip")
    feed = Feed(dataset, seed=1, micro_batch=8, eval_batch=3)
    batch, _ = feed.next_train(0)
    assert sorted(batch.weight.tolist()) == [0.0] + [1.0] * 7
    (row,) = (batch.weight == 0).nonzero().flatten().tolist()
    assert batch.labels[row] == 0 and not batch.images[row].any() and batch.images.flatten(1).any(1).sum() == 7
    first, cursor = feed.next_eval(0)
    second, _ = feed.next_eval(cursor)
    assert (first.weight.tolist(), second.weight.tolist()) == ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    assert feed.bad_images == 2
    feed.close()


def test_an_evaluation_of_which_nothing_can_be_read_is_refused(tree: Path, refuse: Refuse) -> None:
    for path in (tree / "val").rglob("*.jpg"):
        truncate(path)
    line = refuse("--bad-images", "skip", "--num_steps", "1")
    assert line.startswith("evaluation: none of 4 images could be read; ")


def test_a_replacement_is_the_same_on_any_number_of_ranks_and_workers_and_is_named_and_counted(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = [truncate(tree / "train" / "cat" / "1.jpg"), truncate(tree / "train" / "dog" / "3.jpg")]
    truncate(tree / "val" / "dog" / "0.jpg")
    found = []
    for workers, ranks in ((0, 1), (0, 2), (3, 1), (3, 4)):
        caplog.clear()
        dataset = open_dataset(
            "folder", img_size=SIDE, channels=3, data_path=tree, bad_images="replace", workers=workers, loader="threads"
        )
        feeds = [
            Feed(dataset, seed=4, micro_batch=8 // ranks, eval_batch=4, world_size=ranks, rank=rank,
                 augment=Augment(crop=(0.3, 1.0)))
            for rank in range(ranks)
        ]  # fmt: skip
        batches = [feed.next_train(cursor)[0] for cursor in (0, 8, 16) for feed in feeds]
        found.append([torch.cat([batch[part] for batch in batches]) for part in range(3)])  # type: ignore[misc]
        assert feeds[0].next_eval(0)[0].weight.tolist() == [1.0, 1.0, 0.0, 1.0], "evaluation never replaces"
        assert dataset.train.bad_images == 2 and feeds[0].bad_images == 3
        for feed in feeds:
            feed.close()
        named = [line for line in caplog.messages if "not a readable picture (" in line]
        assert sorted(line.rsplit("; ", 1)[1] for line in named) == ["replaced", "replaced", "skipped"]
        assert {line.split(": ")[0] for line in named} >= {str(path) for path in bad}
    images, labels, weight = found[0]
    assert (weight == 1).all() and images.flatten(1).any(1).all()
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    # Its label is that of the picture which stands there: with 8 pictures an epoch the classes are no longer 4 and 4.
    assert any(labels[first : first + 8].sum() != TRAIN for first in (0, 8, 16))


def test_where_nothing_can_be_read_replacing_ends(tree: Path, refuse: Refuse) -> None:
    for path in (tree / "train").rglob("*.jpg"):
        truncate(path)
    line = refuse("--bad-images", "replace")
    assert (
        ": not a readable picture, and neither is any of the " in line
        and "that were drawn in its place; check " in line
    )
