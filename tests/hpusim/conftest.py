"""The simulated card as a stranger's package: built and installed by pip, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[2] / "plugins" / "hpusim"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`python ARGS...` where vitcore-hpusim is installed beside vitcore, whether or not this torch can carry its device."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site), str(PLUGIN)]
    subprocess.run(pip, check=True, capture_output=True, text=True)
    where = {k: v for k, v in os.environ.items() if not k.startswith(("PT_HPU", "VITCORE_", "HPUSIM_"))}
    where |= {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def run(*argv: str, timeout: int = 600, **more: str) -> subprocess.CompletedProcess[str]:
        env = {**where, **more, "PYTHONPATH": f"{site}:{more['PYTHONPATH']}" if "PYTHONPATH" in more else str(site)}
        return subprocess.run([sys.executable, *argv], env=env, capture_output=True, text=True, timeout=timeout)

    run.site = site  # type: ignore[attr-defined]
    return run


@pytest.fixture(scope="session")
def card(beside: Run) -> Run:
    """The same for tests that need the device: they are skipped where the package's own probe says that it cannot be made."""
    asked = beside("-c", "from vitcore_hpusim.probe import missing; print(missing() or '')")
    assert asked.returncode == 0, asked.stderr[-3000:]
    if reason := asked.stdout.strip():
        pytest.skip(f"no simulated card: {reason}")
    return beside
