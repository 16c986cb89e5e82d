"""Plugins of the repository as strangers' packages: built and installed by pip, in a folder of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "plugins"
Shell = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def lazysim(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """`python ARGS...` where vitcore-lazysim is installed beside vitcore."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(PLUGINS / "lazysim")]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    where = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*argv: str, timeout: int = 600) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *argv], env=where, capture_output=True, text=True, timeout=timeout)

    run.site = str(site)  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="session")
def lazy_job(lazysim: Shell) -> Callable[..., Any]:
    """`lazy_job(NAME)`: what the script NAME of this folder says in JSON, in its last line, beside lazysim."""

    def run(name: str, timeout: int = 600) -> Any:
        done = lazysim(str(Path(__file__).parent / name), timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run
