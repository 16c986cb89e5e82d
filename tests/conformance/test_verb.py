"""`vitcore conformance`: its lines, its report, its refusals; and a backend that takes its process with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vitcore.new_backend import rendered
from vitcore.testing.checks import CHECKS

FATAL = """

@kernel("grads.clip")
def fatal(rt, grads, hyper):
    import os

    print("going down", file=__import__("sys").stderr)
    os._exit(7)
"""


def run(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    where = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitcore.conformance", *argv]
    return subprocess.run(command, cwd=folder, env=where, capture_output=True, text=True, check=False)


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """The generated plugin, whose kernel of clipping ends the process."""
    text = rendered("mydev", "cpu")["vitcore_mydev.py"]
    text = text.replace("@hookimpl\ndef vitcore_backends", f"{FATAL}\n\n@hookimpl\ndef vitcore_backends")
    (tmp_path / "vitcore_mydev.py").write_text(text.replace("return [mydev_sgdm]", "return [mydev_sgdm, fatal]"))
    info = tmp_path / "vitcore_mydev-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vitcore-mydev\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vitcore]\nmydev = vitcore_mydev\n")
    return tmp_path


def test_a_process_that_dies_costs_one_check_and_the_report_says_so(plugin: Path) -> None:
    done = run(plugin, "--backend", "mydev", "--checks", "C2", "C7", "C11", "--output", "report")
    assert done.returncode == 1, done
    two, seven, eleven, verdict, *wrote = done.stdout.splitlines()
    assert two.startswith("C2   passed") and eleven.startswith("C11  passed")
    assert seven.startswith("C7   failed") and "the process died (exit status 7): going down" in seven
    assert verdict == "mydev: 2 passed, 1 failed (C7)" and len(wrote) == 2
    said = json.loads((plugin / "report/conformance-mydev.json").read_text())
    assert (said["backend"], said["package"], said["seed"]) == ("mydev", "vitcore-mydev 1.0 (vitcore_mydev)", 0)
    assert [(c["check"], c["outcome"]) for c in said["checks"]] == [
        ("C2", "passed"),
        ("C7", "failed"),
        ("C11", "passed"),
    ]
    page = (plugin / "report/conformance-mydev.md").read_text()
    assert "10 of 13 checks were not asked for" in page and all(CHECKS[c].claim in page for c in ("C2", "C7", "C11"))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--backend mydv", "backend 'mydv' is not known (did you mean 'mydev'?)"),
        ("--backend mydev --checks C14", "check 'C14' is unknown"),
        ("--backend mydev --output vitcore_mydev.py", "--output vitcore_mydev.py: the folder cannot be made"),
        ("--backend hpu-lazy", "backend 'hpu-lazy' cannot run here: habana_frameworks is not installed"),
        ("", "--backend"),
    ],
)
def test_what_is_refused_is_said_in_one_line(argv: str, words: str, plugin: Path) -> None:
    done = run(plugin, *argv.split())
    assert done.returncode == 2 and not done.stdout and "Traceback" not in done.stderr, done
    assert done.stderr.count("error: ") == 1 and words in done.stderr, done.stderr
