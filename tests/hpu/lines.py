"""Which lines of vitcore_hpu ran, noted by a trace function while tests run and in processes that they start."""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
import vitcore_hpu

PACKAGE = Path(vitcore_hpu.__file__).parent
NOTES = "VITCORE_HPU_LINES"
"""The variable that names the folder in which a started process leaves its notes."""

ran: set[tuple[str, int]] = set()


def _local(frame: FrameType, event: str, arg: Any) -> Any:
    if event == "line":
        ran.add((frame.f_code.co_filename, frame.f_lineno))
    return _local


def trace(frame: FrameType, event: str, arg: Any) -> Any:
    """A trace function for the package's files alone."""
    if not frame.f_code.co_filename.startswith(str(PACKAGE)):
        return None
    ran.add((frame.f_code.co_filename, frame.f_lineno))
    return _local


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the processes' notes."""
    return tmp_path_factory.mktemp("lines")


@pytest.fixture(autouse=True, scope="module")
def traced(notes: Path) -> Iterator[None]:
    """Trace this process while a file of the folder is tested, and the processes that it starts."""
    before = sys.gettrace()
    os.environ[NOTES] = str(notes)
    sys.settrace(trace)
    yield
    sys.settrace(before)
    del os.environ[NOTES]


def start() -> None:
    """In a started process: trace, and leave the notes at its end."""
    import atexit

    sys.settrace(trace)
    path = Path(os.environ[NOTES]) / f"{os.getpid()}.json"
    atexit.register(lambda: path.write_text(json.dumps(sorted(ran))))


def gathered() -> set[tuple[str, int]]:
    """All that ran, here and in the processes."""
    found = set(ran)
    for path in Path(os.environ[NOTES]).iterdir():
        found |= {(file, line) for file, line in json.loads(path.read_text())}
    return found


def lines_of(path: Path) -> set[int]:
    """The lines that can run, without what only a type checker reads."""
    text = path.read_text(encoding="utf-8")
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped.update(range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1))
    return _code_lines(compile(text, str(path), "exec")) - skipped


def _code_lines(code: CodeType) -> set[int]:
    found = {line for _, _, line in code.co_lines() if line}
    for each in code.co_consts:
        if isinstance(each, CodeType):
            found |= _code_lines(each)
    return found
