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
    candidates = [path / "state.json", *sorted(path.glob("checkpoints/step-*/state.json"), reverse=True)]
    file = next((c for c in candidates if c.is_file()), None)
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
