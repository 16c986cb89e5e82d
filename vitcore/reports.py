"""Files of reports that a verb writes with `--output FOLDER`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitcore.errors import VitcoreError


def output_folder(path: str) -> Path:
    """The folder, made now: what cannot be written is refused before anything is computed."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise VitcoreError(f"--output {folder}: the folder cannot be made ({e.strerror}); choose another") from e
    return folder


def write_files(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Each text under its name; returns where they are."""
    for name, text in texts.items():
        try:
            (folder / name).write_text(text, encoding="utf-8")
        except OSError as e:
            raise VitcoreError(f"{folder / name}: it cannot be written ({e.strerror}); choose another --output") from e
    return [folder / name for name in texts]
