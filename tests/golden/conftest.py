"""What the golden tests share: comparing a text with its file, or rewriting the file."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: the text is that of `programs/<name>.txt`; `--update-goldens` rewrites the file."""

    def check(name: str, text: str) -> None:
        path = PROGRAMS / f"{name}.txt"
        if request.config.getoption("--update-goldens"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            return
        want = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != want:
            diff = difflib.unified_diff(
                want.splitlines(), text.splitlines(), f"programs/{path.name}", "lowered now", lineterm=""
            )
            remedy = "where the change is meant: pytest tests/golden --update-goldens, then review the diff"
            pytest.fail("\n".join([f"{name} is no longer lowered to its golden text", *diff, remedy]), pytrace=False)

    return check
