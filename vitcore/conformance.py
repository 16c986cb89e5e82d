"""`python -m vitcore.conformance`: prove that a backend trains correctly, and write a report of it."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from vitcore.backend import Backend
from vitcore.cli import run
from vitcore.commandline import parse
from vitcore.errors import VitcoreError, nearest
from vitcore.plan import choose_kernels
from vitcore.plugins import load_plugins
from vitcore.reports import output_folder, write_files
from vitcore.simulation import simulated
from vitcore.testing.checks import CHECKS
from vitcore.testing.process import Answer, Worker


@dataclass(frozen=True, kw_only=True)
class Conformance:
    """Which backend, which checks, and where the report goes."""

    backend: str
    """Backend to check, installed here."""
    simulate: bool = False
    """Check it on the installed simulator of its device."""
    enable_kernel: tuple[str, ...] = ()
    """Kernels to check with that are left out by default."""
    checks: tuple[str, ...] = tuple(CHECKS)
    """Checks to run, of C1 to C13."""
    seed: int = 0
    """Seed of parameters, data and draws."""
    output: str | None = None
    """Folder for conformance-NAME.md and .json; unset: no files."""


def main(argv: Sequence[str]) -> int:
    """Print a line a check; exit code 1 when one fails."""
    asked = parse(Conformance, argv, "vitcore conformance", __doc__ or "")
    for name in asked.checks:
        if name not in CHECKS:
            raise VitcoreError(
                f"check {name!r} is unknown{nearest(name, [*CHECKS])}; choose some of {', '.join(CHECKS)}"
            )
    plugins = load_plugins()
    backend = plugins.backend(asked.backend)
    backend = simulated(plugins, backend) if asked.simulate else backend
    choose_kernels(plugins, backend, enabled=asked.enable_kernel)
    output = None if asked.output is None else output_folder(asked.output)
    worker, answers = (
        Worker(asked.backend, asked.seed, simulate=asked.simulate, enabled=asked.enable_kernel),
        list[Answer](),
    )
    try:
        for name in asked.checks:
            answer = worker.ask(name)
            answers.append(answer)
            print(
                f"{name:<4} {answer.outcome:<15} {CHECKS[name].claim}: {answer.said} ({answer.seconds:.1f} s)",
                flush=True,
            )
    finally:
        worker.close()
    failed = [a.check for a in answers if a.outcome == "failed"]
    print(f"{backend.title}: {_verdict(answers)}")
    if output is not None:
        package = plugins.package(plugins.origin[asked.backend])
        for path in write_report(output, backend, package, asked.seed, answers):
            print(f"wrote {path}")
    return 1 if failed else 0


def _verdict(answers: Sequence[Answer]) -> str:
    counts = {o: [a.check for a in answers if a.outcome == o] for o in ("passed", "failed", "not applicable")}
    parts = [f"{len(names)} {outcome}" for outcome, names in counts.items() if names]
    return ", ".join(parts) + (f" ({', '.join(counts['failed'])})" if counts["failed"] else "")


def write_report(folder: Path, backend: Backend, package: str, seed: int, answers: Sequence[Answer]) -> list[Path]:
    """The report as Markdown for people and JSON for programs; what was run where stands in it."""
    facts = {
        "backend": backend.title, "package": package, "vitcore": version("vitcore"), "torch": version("torch"),
        "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}", "seed": seed,
    }  # fmt: skip
    checks = [{**asdict(a), "claim": CHECKS[a.check].claim} for a in answers]
    texts = {".md": _markdown(facts, answers), ".json": json.dumps({**facts, "checks": checks}, indent=1)}
    stem = f"conformance-{backend.name}{'-SIMULATED' if backend.simulator else ''}"
    return write_files(folder, {stem + suffix: text for suffix, text in texts.items()})


def _markdown(facts: Mapping[str, object], answers: Sequence[Answer]) -> str:
    left = (
        f"; {len(CHECKS) - len(answers)} of {len(CHECKS)} checks were not asked for"
        if len(answers) < len(CHECKS)
        else ""
    )
    lines = [f"# Conformance of {facts['backend']}", "", f"{_verdict(answers)}{left}.", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "| check | claim | outcome | what was seen | seconds |", "|---|---|---|---|---|"]
    for a in answers:
        said = a.said.replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {a.check} | {CHECKS[a.check].claim} | **{a.outcome}** | {said} | {a.seconds:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(run(main))
