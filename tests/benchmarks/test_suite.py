"""The throughput suite once through: what its file holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from vitcore.bench.files import read
from vitcore.profiling.names import PHASES

ROOT = Path(__file__).parents[2]


def test_a_benchmark_says_what_belongs_to_its_number(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_throughput.py", "-q", "-p", "no:cacheprovider", "--backend", "cpu",
         "--models", "ViT-digits", "--batches", "2,4", "--precisions", "fp32", "--rounds", "3", "--threads", "1",
         "--gemm", "128", f"--benchmark-json={file}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    saved = read(str(file))
    assert [b.extra["batch"] for b in saved.benchmarks.values()] == [2, 4]
    for b in saved.benchmarks.values():
        e, median = b.extra, sorted(b.seconds)[1]
        assert len(b.seconds) == 3
        assert e["images_per_second"] == pytest.approx(e["batch"] / median)
        assert e["mfu"] == pytest.approx(e["operations"] / median / e["gemm_operations_per_second"])
        assert (e["backend"], e["threads"], e["precision"], e["model"]) == ("cpu", 1, "fp32", "ViT-digits")
        assert {"device", "torch", "fingerprint"} <= e.keys()
        assert [*e["split_seconds"]] == [*PHASES]
        assert e["peak_bytes"] > e["held_bytes"] > 0 and e["start_seconds"] > e["compile_seconds"] >= 0
        assert b.counts is not None and b.counts["host reads"] == 0 and b.counts["forwards"] == 1
    first, second = (b.extra for b in saved.benchmarks.values())
    # The same program at two sizes of a batch, but for the attention that is the fastest at each.
    assert first["operations"] * 2 == second["operations"] and first["held_bytes"] <= second["held_bytes"]
    assert first["counts"]["kernels"] == second["counts"]["kernels"]


def test_what_there_is_not_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "benchmarks/test_throughput.py", "-q", "-p", "no:cacheprovider", "--models", "ViT-X"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode and "unknown variant 'ViT-X'" in done.stdout + done.stderr
