"""Lazy devices as strangers' packages, each built and installed by pip in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def lazysim(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """`python ARGS...` where vitcore-lazysim is installed beside vitcore."""
    return _beside(tmp_path_factory.mktemp("site"), "lazysim")


@pytest.fixture(scope="session")
def hpusim(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """`python ARGS...` where vitcore-hpusim is installed beside vitcore: a device that keeps a record. Tests with it are
    skipped where the package's own probe says that it cannot be made."""
    run = _beside(tmp_path_factory.mktemp("site"), "hpusim")
    asked = run("-c", "from vitcore_hpusim.probe import missing; print(missing() or '')")
    assert asked.returncode == 0, asked.stderr[-3000:]
    if reason := asked.stdout.strip():
        pytest.skip(f"no simulated card: {reason}")
    return run


def _beside(site: Path, plugin: str) -> Shell:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(PLUGINS / plugin)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    where = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*argv: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**where, **more}
        return subprocess.run([sys.executable, *argv], env=env, cwd=cwd, capture_output=True, text=True, timeout=600)

    return run
