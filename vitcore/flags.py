"""Command-line flags that a plugin brings, as data: a vendor's legacy names and what they mean today."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# What a flag does: (value, fields that were set by hand) -> (fields to change, one line to say).
Effect = Callable[[Any, dict[str, Any]], tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Flag:
    """One flag. `kind` is `switch` (present or not), `int`, `float`, `str` or `bool` (True|False after the flag)."""

    name: str
    kind: str
    help: str
    effect: Effect | str
    """The function, or "module:function"."""
