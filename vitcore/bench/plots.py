"""Pictures of what several files hold: images/s over batch, a line a file; over the files, where there are three or more."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from vitcore.bench.files import Benchmark, Saved
from vitcore.errors import VitcoreError
from vitcore.reports import output_folder

Line = list[tuple[Any, float]]


def draw(saved: Sequence[Saved], folder: str) -> list[Path]:
    """Draw into the folder and return what was written. VitcoreError without matplotlib, and where nothing makes a series."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise VitcoreError("--plot needs matplotlib, which is not installed; pip install 'vitcore[plots]'") from None
    over_runs = len(saved) > 2
    series = _over_runs(saved) if over_runs else _over_batch(saved)
    if not series:
        raise VitcoreError("--plot finds no series: it needs one benchmark at two batches or more (--batches 4,8,16), or three "
                           "files or more with the same benchmarks")  # fmt: skip
    where, written = output_folder(folder), []
    for title, (unit, lines) in series.items():
        # A figure of its own and no pyplot: that would choose a window system.
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for label, line in lines.items():
            axes.plot(
                [x if over_runs else float(x) for x, _ in line],
                [y for _, y in line],
                "o-",
                label=label.replace("$", r"\$"),
            )
        if not over_runs:
            axes.set_xscale("log", base=2)
            ticks = sorted({x for line in lines.values() for x, _ in line})
            axes.set_xticks(ticks, [str(x) for x in ticks])
        axes.set(title=title, ylabel=unit, xlabel="run" if over_runs else "batch", ylim=(0, None))
        axes.legend()
        path = where / f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', title).strip('_')}.png"
        figure.savefig(path, dpi=150)
        written.append(path)
    return written


def _over_batch(saved: Sequence[Saved]) -> dict[str, tuple[str, dict[str, Line]]]:
    """By model, size, precision and backend: a line a file, of those that have two batches or more."""
    series: dict[str, tuple[str, dict[str, Line]]] = {}
    for one in saved:
        for b in one.benchmarks.values():
            if {"batch", "images_per_second", "model"} <= b.extra.keys():
                e = b.extra
                title = f"{e['model']} at {e.get('img_size')} px, {e.get('precision')}, {e.get('backend')}"
                line = series.setdefault(title, ("images/s", {}))[1].setdefault(one.title, [])
                line.append((e["batch"], float(e["images_per_second"])))
    for _, lines in series.values():
        for line in lines.values():
            line.sort()
    return {t: s for t, s in series.items() if any(len(line) > 1 for line in s[1].values())}


def _over_runs(saved: Sequence[Saved]) -> dict[str, tuple[str, dict[str, Line]]]:
    """By benchmark: one line over the files that have it."""
    names = dict.fromkeys(name for one in saved for name in one.benchmarks)
    series: dict[str, tuple[str, dict[str, Line]]] = {}
    for name in names:
        held = [(one.title, one.benchmarks[name]) for one in saved if name in one.benchmarks]
        if len(held) > 1:
            unit = "images/s" if all("images_per_second" in b.extra for _, b in held) else "calls/s"
            short = name.rpartition("::")[2]
            series[short] = (unit, {short: [(title, _rate(b, unit)) for title, b in held]})
    return series


def _rate(benchmark: Benchmark, unit: str) -> float:
    return float(benchmark.extra["images_per_second"]) if unit == "images/s" else 1 / median(benchmark.seconds)
