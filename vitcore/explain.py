"""`python -m vitcore.explain`: what a run asks of a device, before it is paid for.

Flushes with their cause, graphs to compile, host reads, copies, reductions and an estimate of memory, from the lowered text and
the model's shapes; with --run from a few real steps as well, on the device or with --simulate on its simulator, where what
is wrong is named with its line of Python. Exit code 1 when something is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vitcore.cli import run
from vitcore.commandline import resolve_config, say
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.reports import output_folder, write_files

if TYPE_CHECKING:
    from vitcore.doctor.report import Report


@dataclass(frozen=True, kw_only=True)
class Explain(Config):
    """A run's settings, and how far it is looked into."""

    run: bool = False
    """Train a few steps on the device and count; without it the text and the shapes alone are read."""
    steps: int = 6
    """Steps of --run, 2 or more; three more are looked at line by line."""
    output: str | None = None
    """Folder for report.md, report.json and timeline.svg; unset: no files."""


def main(argv: Sequence[str]) -> int:
    """Print the report; exit code 1 when a finding is an error."""
    resolved = resolve_config(argv, "vitcore explain", __doc__ or "", Explain)
    config, own = resolved.config, resolved.own
    for line in resolved.notes:
        say(line)
    if own["run"] and own["steps"] < 2:
        raise VitcoreError(f"--steps {own['steps']} is too few to see what is compiled again; give 2 or more")
    output = None if own["output"] is None else output_folder(own["output"])
    # Here and not at the top: --help needs no compiler.
    from vitcore.plan import make_plan

    plan = make_plan(config, to_run=own["run"])
    if own["run"]:
        # From here on torch is imported, after the backend's environment is known.
        from vitcore.runtime.opening import set_environment

        set_environment(plan.backend, plan.plugins)
    from vitcore.doctor.examination import examine

    report = examine(plan, own["steps"], own["run"])
    if plan.world.rank == 0:
        print(report.table())
        if output is not None:
            for path in write(report, output):
                print(f"wrote {path}")
        if config.json:
            print(json.dumps(report.as_dict()), flush=True)
    return 1 if report.errors else 0


def write(report: Report, folder: Path) -> list[Path]:
    """The report for people and for programs, and the drawing."""
    from vitcore.doctor.timeline import draw

    texts = {
        "report.md": report.markdown(),
        "report.json": json.dumps(report.as_dict(), indent=1),
        "timeline.svg": draw(report),
    }
    return write_files(folder, texts)


if __name__ == "__main__":
    sys.exit(run(main))
