"""`vitcore explain` as it is called."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcore import cli
from vitcore.plugins import load_plugins

Call = Callable[..., "tuple[int, str, str]"]


@pytest.fixture
def explain(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VITCORE_DEBUG", raising=False)

    def call(*argv: str) -> tuple[int, str, str]:
        load_plugins.cache_clear()
        try:
            code = cli.main(["explain", *argv])
        except SystemExit as e:
            code = int(e.code or 0)
        return (code, *capsys.readouterr())

    return call


def test_help_has_its_own_flags_and_a_runs(explain: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, _ = explain("--help")
    assert code == 0
    for flag, text in {"--run": "Train a few steps", "--steps": "Steps of --run", "--output": "report.json",
                       "--train-batch-size": "Images per process", "--use-hpu": "original"}.items():  # fmt: skip
        row = next(line for line in out.splitlines() if re.match(rf"\W*{flag}[ ,]", line))
        assert text in row, row


def test_it_reads_a_program_for_a_device_that_is_not_here(explain: Call) -> None:
    code, out, err = explain("--backend", "hpu-lazy", "--gradient_accumulation_steps", "4", "--json")
    assert code == 0, err
    data = json.loads(out.splitlines()[-1])
    assert data["lazy"] and data["run"] is None and data["programs"]["train"]["regions"] > 8
    for title in (
        "Programs",
        "Regions, in order",
        "What flushes",
        "Claimed kernels",
        "What travels",
        "Memory of the device",
    ):
        assert f"\n{title}" in out, title
    assert "peak, about" in out and "keyed by shapes" in out and "compilations end" in out


def test_files_hold_the_same(explain: Call, tmp_path: Path) -> None:
    code, out, _ = explain("--backend", "hpu-lazy", "--output", "deep/report", "--json")
    folder = tmp_path / "deep" / "report"
    assert code == 0 and {p.name for p in folder.iterdir()} == {"report.md", "report.json", "timeline.svg"}
    assert json.loads((folder / "report.json").read_text()) == json.loads(out.splitlines()[-1])
    assert "timeline.svg" in (folder / "report.md").read_text()


def test_any_backend_can_be_run(explain: Call) -> None:
    quick = "--backend cpu --run --steps 2 --train_batch_size 16 --threads 1".split()
    code, out, err = explain(*quick, "--json")
    assert code == 0, (out, err)
    data = json.loads(out.splitlines()[-1])
    assert not data["lazy"] and "not lazy: no flushes" in out
    assert [r["phase"] for r in data["run"]["rows"]].count("log") == 2
    assert data["run"]["another_size"]["rows"] == 15


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--backend nowhere", "backend 'nowhere' is not known"),
        ("--backend hpu-lazy --run", "backend 'hpu-lazy' cannot run here"),
        ("--backend cpu --run --steps 1", "--steps 1 is too few"),
        ("--backend cpu --run --dataset cifar10 --pretrained_dir None", "cifar10: no data path; give the folder"),
        ("--backend cpu --stepz 3", "--stepz"),
        ("--backend cpu --disable_kernel nothing", "is no kernel of backend"),
        ("--backend cpu --output /dev/null/x", "--output /dev/null/x"),
    ],
)
def test_it_refuses_in_one_line(explain: Call, argv: str, said: str) -> None:
    code, out, err = explain(*argv.split())
    lines = [line for line in err.splitlines() if "error: " in line]
    assert code == 2 and not out and len(lines) == 1 and said in lines[0], (out, err)


def test_lower_explain_says_what_claimed_kernels_cost(capsys: pytest.CaptureFixture[str]) -> None:
    load_plugins.cache_clear()
    assert cli.main(["lower", "--backend", "hpu-lazy", "--explain"]) == 0
    out = capsys.readouterr().out
    assert "what claimed kernels cost:" in out and re.search(
        r"\w+\.\w+ by \w+: .* than the reference|as many flushes", out
    )
