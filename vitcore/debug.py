"""`VITCORE_DEBUG`: one integer. 1 backend and passes, guards on, tracebacks; 2 programs after each pass; 3 generated
Python; 4 every op timed; 5 values hashed at op boundaries."""

from __future__ import annotations

import os

from vitcore.errors import VitcoreError


def debug_level() -> int:
    """The level; unset is 0."""
    text = os.environ.get("VITCORE_DEBUG", "0")
    if not text.isdecimal() or int(text) > 5:
        raise VitcoreError(f"VITCORE_DEBUG={text!r} is no level; set 0 to 5")
    return int(text)
