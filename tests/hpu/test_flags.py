"""The original's flags of mixed precision: what they set, what they say, which lists are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vitcore_hpu import autocast_lists
from vitcore_hpu.autocast_lists import REGISTERED, STANDARD, VARIABLES, translate

from vitcore import cli
from vitcore.errors import VitcoreError

Dry = Callable[..., tuple[dict[str, Any], dict[str, str]]]
O1 = "--use_hpu 1 --hmp --hmp-opt-level O1"


@pytest.fixture
def dry(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dry:
    """`dry(arguments)`: the resolved configuration, and what is said, by flag."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITCORE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(arguments: str) -> tuple[dict[str, Any], dict[str, str]]:
        code = cli.main(["train", *arguments.split(), "--dry-run"])
        out, err = capsys.readouterr()
        if code:
            raise VitcoreError(err)
        notes = [line.removeprefix("vitcore: ") for line in err.splitlines() if line.startswith("vitcore: --")]
        return json.loads(out), {line.split()[0].rstrip(":"): line for line in notes}

    return call


def test_o2_is_autocasts_default_and_says_what_differs(dry: Dry) -> None:
    for level in ("--hmp-opt-level O2", ""):
        config, said = dry(f"--use_hpu 1 --hmp {level}")
        assert (config["backend"], config["precision"], config["env"]) == ("hpu-lazy", "bf16", [])
    _, said = dry("--use_hpu 1 --hmp --hmp-opt-level O2 --hmp-bf16 x.txt")
    assert all(
        word in said["--hmp-opt-level"] for word in (" means ", "conv2d", "log_softmax", "div", "add", "layer_norm")
    )
    assert "has no effect: op lists are read with --hmp-opt-level O1" in said["--hmp-bf16"]


@pytest.mark.parametrize("named", ["", "--hmp-bf16 ops_bf16.txt --hmp-fp32 ops_fp32.txt"])
def test_o1_takes_the_originals_lists_and_says_where_they_mean_something_else(named: str, dry: Dry) -> None:
    config, said = dry(f"{O1} {named}")
    assert sorted(config["env"]) == sorted(f"{VARIABLES[kind]}={STANDARD[kind]}" for kind in VARIABLES)
    line = " ".join(said.values())
    assert "the original's list, which vitcore_hpu brings" in line
    for word in ("add is narrowed", "iadd is unknown", "rsub is unknown", "of layer_norm the input alone", "div, on no list",
                 "conv2d, on no list", "log_softmax is fp32"):  # fmt: skip
        assert word in line, word


def test_the_shipped_lists_are_the_originals_translated() -> None:
    assert STANDARD["bf16"].read_text().split() == (
        "add addmm bmm dot layer_norm matmul mm softmax mul mean dropout linear".split()
    )
    assert (
        STANDARD["fp32"].read_text().split() == "cross_entropy_loss log_softmax embedding binary_cross_entropy".split()
    )
    for kind, path in STANDARD.items():
        names, given = translate(autocast_lists._ORIGINAL[kind].replace(" ", "\n"), kind)
        assert names == path.read_text().split() and set(names) <= REGISTERED
        assert len(given) == len(autocast_lists._ORIGINAL[kind].split())


def test_a_users_list_is_translated_into_the_cache_once(dry: Dry, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("# the products\nmm\n\nmatmul  # again\niadd\nmm\n")
    (tmp_path / "wide.txt").write_text("cross_entropy\ntruediv\n")
    config, said = dry(f"{O1} --hmp-bf16 mine.txt --hmp-fp32 wide.txt --env HLS_MODULE_ID=1")
    first, *pairs = config["env"]
    assert first == "HLS_MODULE_ID=1", "what is asked for by hand stays"
    read = {name: Path(value) for name, value in (pair.split("=", 1) for pair in pairs)}
    assert {name: path.read_text() for name, path in read.items()} == {
        VARIABLES["bf16"]: "mm\nmatmul\n", VARIABLES["fp32"]: "cross_entropy_loss\ndiv\n",
    }  # fmt: skip
    assert all(path.parent == tmp_path / "cache" / "vitcore" / "hpu_op_lists" for path in read.values())
    assert (
        said["--hmp-bf16"].startswith("--hmp-bf16 mine.txt means that list") and "iadd is unknown" in said["--hmp-bf16"]
    )
    assert "log_softmax, on no list" in said["--hmp-bf16"] and "layer_norm" not in said["--hmp-bf16"]
    assert "bf16: the list of --hmp-bf16" in said["--hmp-opt-level"]
    before = {path: path.stat().st_mtime_ns for path in read.values()}
    assert dry(f"{O1} --hmp-bf16 mine.txt --hmp-fp32 wide.txt")[0]["env"] == pairs
    assert {path: path.stat().st_mtime_ns for path in read.values()} == before
    (tmp_path / "mine.txt").write_text("mm\n")
    assert dry(f"{O1} --hmp-bf16 mine.txt")[0]["env"] != pairs


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("mm\nmatmull\n", "mine.txt, line 2: 'matmull' is no op that autocast knows (did you mean 'matmul'?)"),
        ("add_\n", "mine.txt, line 1: 'add_' is no op that autocast knows"),
        ("# nothing\n", "--hmp-bf16 mine.txt: the list names no op that autocast knows"),
        ("iadd\nrsub\n", "--hmp-bf16 mine.txt: the list names no op that autocast knows"),
        (b"\xff\xfe", "--hmp-bf16 mine.txt: the list cannot be read (it is no text)"),
        (None, "--hmp-bf16 mine.txt: the list cannot be read (No such file or directory); give a file"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused_with_its_line(
    content: str | bytes | None, complaint: str, dry: Dry, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "mine.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VitcoreError) as refused:
        dry(f"{O1} --hmp-bf16 mine.txt")
    assert complaint in str(refused.value)


def test_a_cache_that_cannot_be_written_is_refused(dry: Dry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mm\n")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "file"))
    with pytest.raises(VitcoreError, match=r"the translated op list cannot be written .*; set XDG_CACHE_HOME"):
        dry(f"{O1} --hmp-bf16 mine.txt")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--use_hpu 0 --hmp", "op lists are Gaudi's, and the backend is cpu"),
        ("--backend cpu --hmp", "op lists are Gaudi's, and the backend is cpu"),
        ("--use_hpu 1", "op lists belong to --hmp, which is not given"),
    ],
)
def test_where_lists_have_no_effect_they_are_not_read(arguments: str, why: str, dry: Dry) -> None:
    config, said = dry(f"{arguments} --hmp-opt-level O1 --hmp-bf16 absent.txt --hmp-fp32 absent.txt")
    assert config["env"] == []
    for flag in ("--hmp-opt-level", "--hmp-bf16", "--hmp-fp32"):
        assert said[flag].endswith(f"has no effect: {why}")
    assert not os.listdir()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("--use_hpu 2", "--use_hpu 2 is neither 0 nor 1"),
        ("--run_lazy_mode maybe", "neither true nor false"),
        ("--use_hpu 1 --backend cpu", "give one of the two"),
        ("--hmp --precision fp32", "give one of the two"),
        ("--hmp-opt-level O3", "neither O1 nor O2"),
    ],
)
def test_flags_that_disagree_are_refused(arguments: str, complaint: str, dry: Dry) -> None:
    with pytest.raises(VitcoreError) as refused:
        dry(arguments)
    assert complaint in str(refused.value)


def test_the_other_flags_say_what_they_mean(dry: Dry) -> None:
    config, said = dry("--hmp --hmp-opt-level O1")  # whatever `auto` will find
    assert config["backend"] == "auto" and len(config["env"]) == 2
    assert said["--hmp-opt-level"].startswith("--hmp-opt-level O1 means autocast on Gaudi with these ops; ")
    _, said = dry("--run_lazy_mode false --hmp --hmp-verbose")
    assert said["--run_lazy_mode"].endswith("means --backend hpu-eager") and "no effect" in said["--hmp-verbose"]
