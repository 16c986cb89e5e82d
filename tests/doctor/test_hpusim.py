"""The simulated card, which keeps a record of its flushes: the same mistakes, the same lines, and memory beside the estimate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def reports(hpusim: Any) -> dict[str, Any]:
    done = hpusim(str(HERE / "faults_job.py"), "hpu-lazy", "--simulate")
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_right_program_has_no_findings_and_its_record_is_what_the_text_says(reports: dict[str, Any]) -> None:
    report = reports["none"]
    assert report["findings"] == [] and report["run"]["records"] and "SIMULATED" in report["title"]
    steps = [r for r in report["run"]["rows"] if r["program"] == "train" and r["phase"].startswith("step")]
    assert {r["flushes"] for r in steps} == {report["programs"]["train"]["flushes"]}
    # As many graphs as the text says, and each once: the same in every run.
    assert steps[0]["compiles"] == report["programs"]["train"]["graphs"]
    assert not any(r["compiles"] or r["fallbacks"] for r in steps[1:])


@pytest.mark.parametrize("name", ["item", "branch", "number", "backward", "flush", "raises", "ragged"])
def test_a_planted_mistake_is_an_error_with_its_line(reports: dict[str, Any], name: str) -> None:
    errors = [f for f in reports[name]["findings"] if f["severity"] == "error"]
    assert errors and all(f["where"].endswith(f"# planted: {name}") for f in errors if f["where"]), errors


def test_what_this_device_takes_and_others_do_not_is_said(reports: dict[str, Any]) -> None:
    (warning, *_) = [f for f in reports["clip"]["findings"] if "many recording devices lack" in f["what"]]
    assert warning["severity"] == "warning" and "# planted: clip" in warning["where"]
    assert "reference.grads:clip" in warning["remedy"]
    assert any("many recording devices lack" in f["what"] for f in reports["fallback"]["findings"])


def test_an_op_that_the_card_lacks_is_an_error_with_its_line(hpusim: Any) -> None:
    """The card as it would be without the op: the planted one, and the one inside the stock clipping."""
    names = ("fallback", "clip")
    done = hpusim(
        str(HERE / "faults_job.py"), "hpu-lazy", "--simulate", *names, HPUSIM_UNSUPPORTED="linalg_vector_norm"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reports = json.loads(done.stdout.splitlines()[-1])
    for name in names:
        errors = [f for f in reports[name]["findings"] if f["severity"] == "error" and "falls back" in f["what"]]
        assert errors and all(f["where"].endswith(f"# planted: {name}") for f in errors), reports[name]["findings"]
        assert "linalg_vector_norm" in errors[0]["what"]


@pytest.mark.parametrize("more", ["", "--gradient_accumulation_steps 2", "--optimizer sgdm", "--dropout 0.1"])
def test_the_estimate_of_memory_is_what_the_device_records(hpusim: Any, tmp_path: Path, more: str) -> None:
    argv = "-m vitcore.explain --backend hpu-lazy --simulate --run --steps 2 --json --train_batch_size 32".split()
    done = hpusim(*argv, *more.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    data = json.loads(done.stdout.splitlines()[-1])
    assert data["memory"]["peak"] == pytest.approx(data["run"]["peak_bytes"], rel=0.05)
    assert "alive while a graph of a step ran" in done.stdout
