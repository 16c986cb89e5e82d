"""Lines of Python for people: file:line: text, of what runs now, of a function's definition, of a node of autograd's graph."""

from __future__ import annotations

import inspect
import linecache
import os
import re
import sys
from typing import Any

import torch

import vitcore.runtime.guards as guards
import vitcore.runtime.runtime as runtime

_HERE = os.path.dirname(__file__) + os.sep
_AUTOGRAD = re.compile(r"autograd\.grad\(|\.backward\(")
BACKWARD = " (its backward)"


def is_foreign(filename: str) -> bool:
    """Whether a line of this file may be the culprit: torch's, the doctor's, the runtime's and the generated ones are not."""
    own = (guards.TORCH, _HERE, "<")
    return not filename.startswith(own) and filename not in (guards.__file__, runtime.__file__)


def names_a_line(line: str) -> bool:
    """Whether what a device's record says is a line that may be the culprit."""
    return line.count(":") >= 2 and is_foreign(line) and not line.startswith((guards.__file__, runtime.__file__))


def here() -> str:
    """The innermost line that may be the culprit; in a backward, the line whose gradient is being made."""
    frame, line = sys._getframe(1), ""
    while frame is not None and not line:
        if is_foreign(frame.f_code.co_filename):
            line = _shown(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    node = torch._C._current_autograd_node()
    if node is not None and (not line or _AUTOGRAD.search(line)):
        return _made_at(node) or line
    return line


def defined(fn: Any) -> str:
    """The line of a function's definition; "" where Python does not know it."""
    fn = inspect.unwrap(fn) if callable(fn) else fn
    code = getattr(getattr(fn, "__func__", fn), "__code__", None)
    if code is None:
        return ""
    # The first line of a decorated function is its decorator's; `def` stands below it.
    first = code.co_firstlineno
    lines = {n: linecache.getline(code.co_filename, n).strip() for n in range(first, first + 8)}
    return _shown(
        code.co_filename, next((n for n, text in lines.items() if text.startswith(f"def {code.co_name}(")), first)
    )


def _shown(filename: str, number: int) -> str:
    return f"{filename}:{number}: {linecache.getline(filename, number).strip()}"


def _made_at(node: Any) -> str:
    """The line of the forward that made a node; known where autograd keeps a record of it (`set_detect_anomaly`)."""
    for entry in reversed(node.metadata.get("traceback_") or []):
        found = re.match(r'\s*File "([^"]+)", line (\d+)', entry)
        if found and is_foreign(found[1]):
            return _shown(found[1], int(found[2])) + BACKWARD
    return ""
