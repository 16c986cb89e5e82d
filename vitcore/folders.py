"""Folders that a command is going to write into."""

from __future__ import annotations

import os
from pathlib import Path


def make_writable(folder: Path) -> None:
    """Make the folder and prove that it can be written, before anything is computed; OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable.{os.getpid()}"
    probe.write_text("")
    probe.unlink()
