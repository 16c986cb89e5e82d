"""The configuration that a checkpoint's run had, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitcore.config import Config
from vitcore.errors import VitcoreError


def saved_config(path: Path) -> Config | None:
    """The configuration of the run whose checkpoint, or whose run folder, `path` is; None where it is neither.

    Raises VitcoreError for a run folder without a complete checkpoint, and for a record that holds no configuration.
    """
    file = _record(path)
    if file is None and (path / "checkpoints").is_dir():
        raise VitcoreError(f"run folder {path}: it holds no complete checkpoint; evaluate another run")
    if file is None:
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["facts"]["config"]
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Config(**lists)
    except (ValueError, KeyError, TypeError) as e:
        raise VitcoreError(f"checkpoint {path}: {file.name} holds no configuration ({type(e).__name__}: {e}); it is "
                           "corrupt or of another version") from e  # fmt: skip


def saved_choice(path: Path, backend: str) -> dict[str, str] | None:
    """The kernels of this backend that the run measured to be slower, each with that as the reason; None where the checkpoint
    says nothing of it. What cannot be read is refused where the checkpoint is loaded."""
    file = _record(path)
    try:
        choice = json.loads(file.read_text(encoding="utf-8"))["facts"]["measured"] if file else {}
        slower = choice["slower"] if choice.get("backend") == backend else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (
        None if slower is None else dict.fromkeys(slower, "measured to be slower where the run that is resumed began")
    )


def _record(path: Path) -> Path | None:
    """The record of a checkpoint, or of the newest one of a run folder."""
    candidates = [path / "state.json", *sorted(path.glob("checkpoints/step-*/state.json"), reverse=True)]
    return next((c for c in candidates if c.is_file()), None)
