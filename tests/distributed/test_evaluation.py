"""Two ranks count an evaluation by class and by confidence as one rank does, each image once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from rig import config, train
from test_two_ranks import both, free_ports

from vitcore import cli


def test_two_ranks_report_what_one_rank_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tmp_path, num_steps=8, eval_every=0))
    # 360 images in batches of 70: the last of two ranks has some on one rank and none on the other.
    asked = ["evaluate", "--checkpoint", str(tmp_path / "run"), "--backend", "cpu", "--eval_batch_size", "70"]
    port = str(free_ports(1))
    envs = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port} for r in (0, 1)]
    first, second = both(["-m", "vitcore", *asked, "--json", "--report", str(tmp_path / "two")], envs)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr[-2000:] + second.stderr[-2000:]
    ours = [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert ours == [] and "report in" in first.stderr and "report in" not in second.stderr

    monkeypatch.setattr(sys, "argv", ["vitcore"])
    assert cli.main([*asked, "--report", str(tmp_path / "one")]) == 0, capsys.readouterr()
    two, one = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("two", "one"))
    assert (tmp_path / "two" / "confusion.csv").read_text() == (tmp_path / "one" / "confusion.csv").read_text()
    assert two["total"] == 360 and two["correct"] > 36 and two["classes"] == one["classes"]
    assert two["calibration_error"] == pytest.approx(one["calibration_error"], rel=1e-4)
    for column in ("images", "accuracy", "confidence"):
        pairs = [(b[column], a[column]) for b, a in zip(two["bins"], one["bins"], strict=True)]
        assert all(b is a is None or b == pytest.approx(a, rel=1e-4) for b, a in pairs), (column, pairs)
