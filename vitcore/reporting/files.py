"""An evaluation's report as files: one JSON for programs, two tables for spreadsheets, two plots."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.folders import make_writable
from vitcore.reporting.numbers import Details

REPORT, CONFUSION, CLASSES = "report.json", "confusion.csv", "per_class.csv"


def prepare(folder: Path) -> None:
    """Make the folder and prove that it can be written, before anything is computed."""
    try:
        make_writable(folder)
    except OSError as e:
        raise VitcoreError(f"--report {folder}: cannot be written ({e.strerror}); give another folder") from e


def write(folder: Path, result: Mapping[str, Any], details: Details) -> list[str]:
    """Write `report.json` (`result` and the details; shares in percent, what is not a number as null), `confusion.csv`,
    `per_class.csv` and, where matplotlib is installed, the plots. The names of what was written."""
    from vitcore.reporting.plots import draw

    known = {**result, **details.as_dict()}
    (folder / REPORT).write_text(json.dumps(_finite(known), indent=1) + "\n", encoding="utf-8")
    header = ["class", *details.class_names, "undecided"]
    rows = zip(details.class_names, details.confusion.tolist(), details.undecided.tolist(), strict=True)
    _table(folder / CONFUSION, header, ([name, *counts, none] for name, counts, none in rows))
    columns = ("class", "images", "correct", "accuracy", "answered", "precision")
    scores = ([c.name, c.images, c.correct, c.accuracy, c.answered, c.precision] for c in details.classes)
    _table(folder / CLASSES, columns, scores)
    return [REPORT, CONFUSION, CLASSES, *draw(folder, details)]


def _table(path: Path, header: Iterable[object], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _finite(value: Any) -> Any:
    """The value as JSON holds it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
