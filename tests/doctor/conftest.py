"""torch's own lazy device as a stranger's package, in a folder of its own; and a device that says what it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "plugins" / "lazysim"


@pytest.fixture(scope="session")
def lazysim(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python ARGS...` where vitcore-lazysim is installed beside vitcore."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(PLUGIN)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    where = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *argv], env=where, cwd=cwd, capture_output=True, text=True, timeout=600)

    return run
