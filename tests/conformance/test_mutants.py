"""Planted faulty backends: the kit catches every one of them, by the check that is made for it, and names the op."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "mutants"), str(HERE.parents[1] / "plugins" / "lazysim")]

from vitcore_mutants import MUTANTS, SOUND  # noqa: E402

Run = Callable[..., dict[str, dict[str, dict[str, Any]]]]


@pytest.fixture(scope="module")
def run(lazysim: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What the checks say of the mutants of a device, `all` of them or those that must catch them."""
    site = tmp_path_factory.mktemp("mutants")
    info = site / "vitcore_mutants-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vitcore-mutants\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vitcore]\nmutants = vitcore_mutants\n")
    path = os.pathsep.join([str(site), str(HERE / "mutants"), lazysim.site])

    def call(*argv: str) -> Any:
        command = [sys.executable, "-W", "ignore", str(HERE / "mutants_job.py"), *argv]
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return call


@pytest.fixture(scope="module")
def answers(run: Run) -> dict[str, Any]:
    return {**run("host"), **run("lazy")}


def test_there_are_at_least_thirty() -> None:
    assert len(MUTANTS) >= 30


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_caught_and_named(name: str, answers: dict[str, Any]) -> None:
    mutant = MUTANTS[name]
    answer = answers[name][mutant.check]
    assert answer["outcome"] == "failed", answer
    assert all(word in answer["said"] for word in mutant.words), answer["said"]


@pytest.mark.parametrize("name", SOUND)
def test_another_formula_that_is_declared_is_followed(name: str, answers: dict[str, Any]) -> None:
    assert answers[name]["C3"]["outcome"] == "passed", answers[name]


@pytest.mark.slow
def test_each_check_catches_one_that_no_other_does(run: Run) -> None:
    """Every check on every mutant; the table is printed with -s."""
    answers = {**run("host", "all"), **run("lazy", "all")}
    checks = [f"C{i}" for i in range(1, 14)]
    caught = {name: [c for c in checks if answers[name][c]["outcome"] == "failed"] for name in MUTANTS}
    print("\n| mutant | " + " | ".join(checks) + " |\n|---" * 1 + "|---" * len(checks) + "|")
    for name, by in caught.items():
        print(f"| {name} | " + " | ".join("x" if c in by else "" for c in checks) + " |")
    alone = {by[0] for by in caught.values() if len(by) == 1}
    assert all(caught.values()), [n for n, by in caught.items() if not by]
    assert alone == {*checks}, f"not alone with any: {sorted({*checks} - alone)}"
