"""Folders that commands write into: the one that is asked for, and the user's cache."""

from __future__ import annotations

import os
from pathlib import Path


def make_writable(folder: Path) -> None:
    """Make the folder and prove that it can be written, before anything is computed; OSError where it cannot."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".writable.{os.getpid()}"
    probe.write_text("")
    probe.unlink()


def user_cache() -> Path:
    """Where vitcore keeps what can be made again: `$VITCORE_CACHE`, else `$XDG_CACHE_HOME/vitcore`, else `~/.cache/vitcore`."""
    if own := os.environ.get("VITCORE_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "vitcore"
