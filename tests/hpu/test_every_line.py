"""vitcore_hpu has no line that a test of this folder does not run."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from lines import PACKAGE, gathered, lines_of, trace
from standin import Gaudi

HERE = Path(__file__).parent


def test_a_line_that_is_not_run_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import os\n\n\ndef f(x):\n    if x:\n        return 1\n"
        + "    return 2\n"
    )
    assert lines_of(path) >= {1, 2, 6, 7, 8, 9} and 3 not in lines_of(path)
    assert trace.__name__ == "trace"


def test_every_line_is_run(request: pytest.FixtureRequest, gaudi: Callable[..., Gaudi]) -> None:
    here = {item.path for item in request.session.items if item.path.parent == HERE}
    if here != set(HERE.glob("test_*.py")) or request.config.option.keyword:
        pytest.skip("needs a run of all tests of the folder")
    gaudi(lazy=True)
    for path in PACKAGE.rglob(
        "*.py"
    ):  # what stands outside functions ran when the modules were imported, before the trace
        runpy.run_path(str(path))
    ran = gathered()
    missing = {
        path.name: sorted(n for n in lines_of(path) if (str(path), n) not in ran)
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    assert {name: lines for name, lines in missing.items() if lines} == {}
