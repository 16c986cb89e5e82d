"""`vitcore data`: what there is to do with data before training, and how it is refused."""

from __future__ import annotations

import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vitcore.data import imagenet
from vitcore.data.imagenet import Sorted

HEAVY = {"torch", "torchvision", "numpy", "PIL", "scipy"}


def test_help_lists_what_there_is_to_do(vit: Callable[..., Any]) -> None:
    for argv in (("data",), ("data", "--help"), ("data", "-h")):
        done = vit(*argv)
        assert done.code == 0 and "prepare" in done.out and "cache" in done.out and not done.err
    assert "data" in vit("--help").out
    shown = vit("data", "prepare", "--help")
    assert shown.code == 0 and "ILSVRC2012_img_train.tar" in " ".join(shown.out.split())


def test_help_imports_nothing_heavy_and_the_module_is_the_verb(shell: Callable[..., Any]) -> None:
    code = (
        "import sys, contextlib, io; from vitcore.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['data', '--help']) == 0\n"
        f"assert not {HEAVY!r} & set(sys.modules), {HEAVY!r} & set(sys.modules)\n"
    )
    done = shell("-c", code)
    assert done.code == 0, done.err
    by_module, by_verb = shell("-m", "vitcore.data", "--help"), shell("-m", "vitcore", "data", "--help")
    assert by_module.code == 0 and by_module.out == by_verb.out
    assert (
        shell("-m", "vitcore.data", "prepar").refusal
        == "'prepar' is nothing to do with data (did you mean 'prepare'?); see vitcore data --help"
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("data", "sort"), "'sort' is nothing to do with data"),
        (("data", "prepare"), "see vitcore data prepare --help"),
        (("data", "prepare", "cifar10", "--data_path", "x"), "see vitcore data prepare --help"),
        (("data", "prepare", "imagenet"), "see vitcore data prepare --help"),
        (("data", "prepare", "imagenet", "--data_path", "absent"), "imagenet: absent is not a folder; give the one that holds "),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_one_line(argv: tuple[str, ...], words: str, vit: Callable[..., Any]) -> None:
    assert words in vit(*argv).refusal


def test_prepare_says_what_there_is_then(vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(
        imagenet, "prepare_imagenet", lambda root: (asked.append(root), Sorted(1000, 1281167, 50000))[1]
    )
    done = vit("data", "prepare", "imagenet", "--data_path", "here")
    assert done.code == 0 and asked == [Path("here")]
    assert done.out == (
        "here: train/ 1,281,167 and val/ 50,000 pictures of 1,000 classes, as published; train with --dataset imagenet1K "
        "--data_path here\n"
    )


def test_cache_is_handed_its_own_arguments(vit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    module = ModuleType("cached")
    module.main = lambda argv: (seen.append(list(argv)), 3)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vitcore.data.formats.cached", module)
    assert vit("data", "cache", "--to", "there").code == 3 and seen == [["--to", "there"]]


def test_a_data_set_that_is_missing_is_refused_with_what_to_fetch(vit: Callable[..., Any], tmp_path: Path) -> None:
    train = (
        "train",
        "--dataset",
        "cifar10",
        "--pretrained_dir",
        "None",
        "--backend",
        "cpu",
        "--model_type",
        "ViT-Ti_16",
    )
    size = ("--img_size", "32", "--workers", "0")
    line = vit(*train, *size, "--data_path", tmp_path).refusal
    assert line.startswith(f"cifar10: {tmp_path} holds no files of it; put cifar-10-binary.tar.gz (170 MB, https://")
    assert vit("train", "--dataset", "digits", "--download").refusal.startswith("digits: there is nothing to download")
    assert vit("train", "--dataset", "hf:").refusal.startswith("data set 'hf:' has no name; write hf:NAME")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("nothing"), io.BytesIO())
    assert "it lacks cifar-10-batches-bin/" in vit(*train, *size, "--data_path", tmp_path).refusal
