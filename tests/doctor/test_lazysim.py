"""torch's own lazy device: planted mistakes are found with their line, a right program is not blamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SOURCE = (HERE / "faults.py").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def reports(lazysim: Any) -> dict[str, Any]:
    done = lazysim(str(HERE / "faults_job.py"), "lazysim")
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def planted_at(name: str) -> str:
    """file:line of a planted mistake."""
    (number,) = (n for n, line in enumerate(SOURCE, 1) if line.rstrip().endswith(f"# planted: {name}"))
    return f"faults.py:{number}: "


def test_a_right_program_has_no_findings_and_is_counted(reports: dict[str, Any]) -> None:
    report = reports["none"]
    assert report["findings"] == []
    steps = [r for r in report["run"]["rows"] if r["program"] == "train" and r["phase"].startswith("step")]
    assert {r["flushes"] for r in steps} == {report["programs"]["train"]["flushes"]} == {steps[0]["predicted"]}
    assert steps[0]["compiles"] <= report["programs"]["train"]["graphs"]
    assert not any(r["compiles"] or r["fallbacks"] or r["host_reads"] for r in steps[1:])
    assert [r["host_reads"] for r in report["run"]["rows"] if r["phase"] == "log"] == [1, 1]
    # Of a step under the probe: pictures, labels and weights of one micro-batch; two rates, two decays by group, the momentum
    # and the norm to clip to.
    assert [p["copies_seen"] for p in report["run"]["probed"]] == [3 + 6, 3 + 6]
    assert report["run"]["another_size"]["graphs"] > 0
    assert [b["shape"][0] for b in report["run"]["batches"]] == [8]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("item", "_local_scalar_dense.default reads a value of the device on the host, once a step"),
        ("branch", "the branch depends on data"),
        ("number", "compiled after warm-up, in every step: a Python number changes each step"),
        ("fallback", "linalg_vector_norm.default falls back to the host, once a step"),
        ("backward", "model.backward by autograd: aten._local_scalar_dense.default reads"),
        ("clip", "grads.clip by stock_clip: aten.linalg_vector_norm.default falls back to the host"),
        ("flush", "opt.update by flushes_and_says_nothing: flushes without saying so, once a step"),
        ("raises", "the run failed: NotImplementedError: to be written"),
        ("ragged", "batches of shape [5, 3, 16, 16] where the others have [8, 3, 16, 16]"),
    ],
)
def test_a_planted_mistake_is_an_error_with_its_line(reports: dict[str, Any], name: str, said: str) -> None:
    errors = [f for f in reports[name]["findings"] if f["severity"] == "error"]
    found = [f for f in errors if said in f["what"]]
    assert found, errors
    assert planted_at(name) in found[0]["where"] and f"planted: {name}" in found[0]["where"]
    assert found[0]["remedy"]
    # And no other line is blamed.
    assert all(planted_at(name) in f["where"] for f in errors if f["where"]), errors


def test_state_that_comes_late_is_told_from_numbers_that_change(reports: dict[str, Any]) -> None:
    (found,) = reports["late"]["findings"]
    assert "in step 2" in found["what"] and "something is made at the first update" in found["what"]


def test_stock_clipping_is_answered_with_the_kernel_to_use(reports: dict[str, Any]) -> None:
    worst = reports["clip"]["findings"][0]
    assert "vitcore.runtime.reference.grads:clip" in worst["remedy"] and "45 times a step" in worst["what"]


def test_the_verb_runs_the_recipe_on_the_device(lazysim: Any, tmp_path: Path) -> None:
    argv = "-m vitcore.explain --backend lazysim --run --steps 2 --train_batch_size 16 --json --output out".split()
    done = lazysim(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    data = json.loads(done.stdout.splitlines()[-1])
    assert data == json.loads((tmp_path / "out" / "report.json").read_text())
    assert data["findings"] == [] and data["run"]["counts"] and not data["run"]["records"]
    assert (
        "keeps no record of its flushes" in done.stdout
        and "a batch of another size (15 rows) would compile" in done.stdout
    )
    assert (tmp_path / "out" / "timeline.svg").read_text().startswith("<svg")
    assert "## Counted" in (tmp_path / "out" / "report.md").read_text()
