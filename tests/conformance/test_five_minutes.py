"""A stranger's first five minutes: a plugin is written and installed, conforms, gets a kernel, and a wrong one is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_from_nothing_to_a_kernel_and_from_a_wrong_kernel_to_its_name(tmp_path: Path) -> None:
    site = tmp_path / "site"
    where = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def python(*argv: str, code: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, *argv], cwd=tmp_path, env=where, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    python("-m", "vitcore.new_backend", "mydev")
    plugin = tmp_path / "vitcore-mydev" / "vitcore_mydev.py"
    kernels = plugin.read_text()
    # First without a kernel of its own: the reference's.
    plugin.write_text(kernels.replace("return [mydev_sgdm] if", "return [] if"))
    pip = ("-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(site), "./vitcore-mydev")
    python(*pip)
    conformance = ("-m", "vitcore.conformance", "--backend", "mydev")
    said = python(*conformance, "--output", "report")
    assert "mydev: 12 passed, 1 not applicable" in said and (tmp_path / "report/conformance-mydev.json").exists()
    # Then as generated, with one claimed kernel. What is installed is one file.
    (site / "vitcore_mydev.py").write_text(kernels)
    assert "mydev: 4 passed" in python(*conformance, "--checks", "C2", "C3", "C7", "C8")
    # And one that is wrong.
    right = "return rt.opt_update__reference(params, state, grads, hyper, ok)"
    assert right in kernels
    (site / "vitcore_mydev.py").write_text(kernels.replace(right, f"grads = [g * 1.01 for g in grads]\n    {right}"))
    said = python(*conformance, "--checks", "C3", code=1)
    assert "failed" in said and "first diverging op: opt.update by mydev_sgdm, momentum of " in said, said
