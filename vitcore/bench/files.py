"""Files of pytest-benchmark, read for what they say of each benchmark and of where it ran."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vitcore.errors import VitcoreError

STORAGE = Path(".benchmarks")
"""Where pytest-benchmark's `--benchmark-autosave` and `--benchmark-save` write."""
_PLACE = ("backend", "device", "threads")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a file: seconds of every round, and what its test noted."""

    name: str
    """With its parameters, and the file of the test."""
    seconds: tuple[float, ...]
    extra: Mapping[str, Any]

    @property
    def place(self) -> dict[str, Any]:
        """What it ran on, as far as it says."""
        return {k: self.extra[k] for k in _PLACE if k in self.extra}

    @property
    def counts(self) -> Mapping[str, Any] | None:
        """Its counted facts; None where it counts none."""
        found: Mapping[str, Any] | None = self.extra.get("counts")
        return found


@dataclass(frozen=True)
class Saved:
    """A file: its name for people, its machine, its benchmarks by name."""

    title: str
    machine: dict[str, Any]
    benchmarks: dict[str, Benchmark] = field(default_factory=dict)


def find(name: str) -> Path:
    """The file that a path or the name of a saved run means. VitcoreError where there is none, or several."""
    path = Path(name)
    if path.is_file():
        return path
    held = sorted(STORAGE.rglob("*.json"))
    found = [p for p in held if name in (p.stem, p.name) or p.stem.startswith(f"{name}_")]
    if len(found) == 1:
        return found[0]
    if found:
        raise VitcoreError(f"{name!r} means {' or '.join(map(str, found))}; give the path of one")
    there = f"; {STORAGE} has: {', '.join(p.stem for p in held)}" if held else f", and {STORAGE} holds none"
    raise VitcoreError(
        f"{name!r} is no file and no saved run{there}; write one by pytest benchmarks --benchmark-json FILE"
    )


def read(name: str) -> Saved:
    """Read a file of pytest-benchmark. VitcoreError that names what it lacks."""
    path = find(name)
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise VitcoreError(
            f"{path}: it cannot be read ({e}); write it again by pytest benchmarks --benchmark-json FILE"
        ) from e
    try:
        info = held["machine_info"]
        benchmarks = [_benchmark(path, one) for one in held["benchmarks"]]
    except (KeyError, TypeError, AttributeError) as e:
        raise VitcoreError(
            f"{path}: it is no file of pytest-benchmark (no {e}); give one that --benchmark-json wrote"
        ) from e
    # The one part of it that describes the processor.
    processor = next((part for part in info.values() if isinstance(part, dict) and "brand_raw" in part), {})
    machine = {"system": info.get("system"), "machine": info.get("machine"), "processor": processor.get("brand_raw"),
               "cores": processor.get("count")}  # fmt: skip
    return Saved(path.stem, machine, {b.name: b for b in benchmarks})


def _benchmark(path: Path, held: Mapping[str, Any]) -> Benchmark:
    name, stats = held["fullname"], held["stats"]
    if not stats.get("data"):
        raise VitcoreError(f"{path}: {name} has no times of its rounds, of which intervals are made; write the file by "
                           "--benchmark-json, or add --benchmark-save-data")  # fmt: skip
    return Benchmark(name, tuple(map(float, stats["data"])), held.get("extra_info") or {})
