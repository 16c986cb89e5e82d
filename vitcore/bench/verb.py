"""`vitcore bench`, which is `python -m vitcore.bench`: what files of pytest-benchmark say of each other."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from vitcore.commandline import parse
from vitcore.errors import VitcoreError, nearest

if TYPE_CHECKING:
    from vitcore.bench.compare import Row
    from vitcore.bench.files import Saved

TASKS = {"compare": "every benchmark of two files: how the times and the counts changed"}


@dataclass(frozen=True, kw_only=True)
class Compare:
    """What is compared, and what is too much."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Two files or more, or names of saved runs; each is compared with the first."""
    threshold: float = 5.0
    """Percent: a benchmark is slower where the whole 95 % interval of its ratio lies beyond it."""
    across_machines: bool = False
    """Compare also what was measured on different machines, devices or numbers of threads."""
    plot: str | None = None
    """Folder for one picture a series: images/s over batch, or over the files where there are three or more."""
    json: bool = False
    """Print one JSON object as the last line of standard output."""


def main(argv: Sequence[str]) -> int:
    """Dispatch to the task."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: vitcore bench TASK; vitcore bench TASK --help shows its flags\n")
        print("\n".join(f"  {task}  {what}" for task, what in TASKS.items()))
        return 0
    if argv[0] not in TASKS:
        raise VitcoreError(
            f"{argv[0]!r} is nothing that bench does{nearest(argv[0], [*TASKS])}; see vitcore bench --help"
        )
    return compare_files(argv[1:])


def compare_files(argv: Sequence[str]) -> int:
    """Print the table; exit code 1 where a benchmark is slower or counts otherwise."""
    asked = parse(Compare, argv, "vitcore bench compare", TASKS["compare"])
    if len(asked.files) < 2:
        raise VitcoreError(
            f"{len(asked.files)} file(s) to compare; give two or more that pytest --benchmark-json wrote"
        )
    if not 0 <= asked.threshold < 100:
        raise VitcoreError(f"--threshold {asked.threshold} is out of range: it is a percentage from 0 to 100")
    from vitcore.bench.compare import compare
    from vitcore.bench.files import read

    saved = [read(name) for name in asked.files]
    if asked.plot is not None:
        from vitcore.bench.plots import draw

        drawn = draw(saved, asked.plot)
    tables = [compare(saved[0], other, asked.threshold, across_machines=asked.across_machines) for other in saved[1:]]
    for other, rows in zip(saved[1:], tables):
        _show(saved[0], other, rows, asked.threshold)
    if asked.plot is not None:
        print("\n".join(f"wrote {path}" for path in drawn))
    failed = any(row.fails for rows in tables for row in rows)
    if asked.json:
        found = [{"first": saved[0].title, "second": other.title, "benchmarks": [asdict(row) for row in rows]}
                 for other, rows in zip(saved[1:], tables)]  # fmt: skip
        print(json.dumps({"threshold": asked.threshold, "failed": failed, "comparisons": found}))
    return int(failed)


def _show(first: Saved, second: Saved, rows: Sequence[Row], threshold: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A file or a pipe has no width: nothing is cut there.
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    table = Table(title=f"{second.title} / {first.title}, medians; threshold {threshold:g} %", title_justify="left")
    for column in ("benchmark", "before", "after", "ratio", "95 % interval", "counts", "verdict"):
        table.add_column(
            column, justify="left" if column in ("benchmark", "counts", "verdict") else "right", overflow="fold"
        )
    colours = {"slower": "red", "differs": "red", "faster": "green", "same": ""}
    for row in rows:
        before, after = (_time(saved.benchmarks[row.name].seconds) for saved in (first, second))
        table.add_row(Text(row.name), before, after, f"{row.ratio.median:.3f}", f"{row.ratio.low:.3f} .. {row.ratio.high:.3f}",
                      row.counted, Text(row.verdict, colours[row.verdict]))  # fmt: skip
    console.print(table)
    for row in rows:
        for difference in row.differences:
            print(f"{row.name}: {difference}")
        notes = _changed(first, second, row.name)
        if notes:
            print(f"{row.name}: {notes}")
    for one, other in ((first, second), (second, first)):
        alone = [name for name in one.benchmarks if name not in other.benchmarks]
        if alone:
            print(f"only in {one.title}: {', '.join(alone)}")


def _changed(first: Saved, second: Saved, name: str) -> str:
    """What else is not as it was: such a change is no fault, but it may be the cause."""
    before, after = (saved.benchmarks[name].extra for saved in (first, second))
    named = {"fingerprint": "the program", "torch": "torch"}
    changed = [f"{what} was {before[k]}, is {after[k]}" for k, what in named.items() if k in before and k in after
               and before[k] != after[k]]  # fmt: skip
    return "; ".join(changed)


def _time(seconds: Sequence[float]) -> str:
    from statistics import median

    value = median(seconds)
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value * 1e9:.4g} ns"
