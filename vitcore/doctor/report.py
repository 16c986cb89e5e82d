"""What was found, as plain data, as tables for people, and as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitcore.doctor.costs import Cost
from vitcore.doctor.diagnose import Finding
from vitcore.doctor.memory import Memory
from vitcore.doctor.quantities import size
from vitcore.doctor.running import OTHER, Run
from vitcore.doctor.static import PROGRAMS, Item, Outline
from vitcore.doctor.traffic import Traffic

Row = tuple[str, ...]
Section = tuple[str, Row, list[Row]]
"""A title, the columns' names and the rows."""


@dataclass(frozen=True)
class Report:
    """Everything that `vitcore explain` says. `run` is None where nothing was run; `memory` and `traffic` where the model's
    shapes are not known, and `unknown` then says why."""

    title: str
    module: str
    lazy: bool
    world: int
    precision: str
    programs: dict[str, Outline]
    costs: list[Cost]
    traffic: Traffic | None
    memory: Memory | None
    unknown: str
    run: Run | None
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """How many findings are errors."""
        return sum(f.severity == "error" for f in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as JSON holds it."""
        whole = {name: getattr(self, name) for name in ("title", "module", "lazy", "world", "precision", "unknown")}
        whole |= {
            "programs": {n: asdict(p) for n, p in self.programs.items()},
            "costs": [{**asdict(c), "said": str(c)} for c in self.costs],
            "traffic": asdict(self.traffic) if self.traffic else None,
            "memory": asdict(self.memory) if self.memory else None,
            "run": _run_dict(self.run) if self.run else None,
            "findings": [asdict(f) for f in self.findings],
        }
        data: dict[str, Any] = json.loads(json.dumps(whole))
        return data

    def sections(self) -> list[Section]:
        """The report as tables, in the order in which it is read."""
        return [s for s in (*self._of_the_text(), *self._of_sizes(), *self._of_the_run()) if s[2]]

    def _of_the_text(self) -> list[Section]:
        regions: list[Row] = [
            (name, item.name, f"x{times}" if times > 1 else "", ", ".join(item.ops))
            for name, outline in self.programs.items() for item, times in _regions(outline.items)
        ]  # fmt: skip
        flushes: list[Row] = [
            (PROGRAMS[n], cause, str(times)) for n, o in self.programs.items() for cause, times in o.causes.items()
        ]
        totals: list[Row] = [
            (PROGRAMS[n], str(o.regions), str(o.marks), str(o.flushes), str(o.reads), str(o.graphs), _again(o))
            for n, o in self.programs.items()
        ]
        if not self.lazy:
            totals = [(*row[:2], "-", "not lazy: no flushes", row[4], "-", "-") for row in totals]
        columns = ("for", "regions", "marks", "flushes", "host reads", "graphs to compile", "when it comes again")
        return [
            ("Programs", columns, totals),
            ("Regions, in order", ("program", "region", "times", "ops"), regions),
            ("What flushes", ("for", "cause", "times"), flushes),
            ("Claimed kernels", ("what each costs in flushes",), [(str(c),) for c in self.costs]),
        ]

    def _of_sizes(self) -> list[Section]:
        travels, holds = list[Row](), list[Row]()
        if self.traffic:
            t = self.traffic
            travels = [
                (PROGRAMS[n], str(t.copies[n]), size(t.copied_bytes[n]), str(t.reductions[n]), size(t.reduced_bytes[n]),
                 str(t.host_reads[n])) for n in t.copies
            ]  # fmt: skip
        if self.memory:
            held = {k: v for k, v in asdict(self.memory).items() if isinstance(v, int)}
            holds = [(k if k != "peak" else "peak, about", size(v)) for k, v in held.items() if v]
        unknown = [(f"memory and traffic are not known: {self.unknown}",)] if self.unknown else []
        if self.memory and self.memory.said:
            unknown.append((f"memory: {self.memory.said}",))
        columns = ("for", "copies to the device", "bytes", "reductions", "bytes reduced", "host reads")
        return [
            ("What travels", columns, travels),
            ("Memory of the device in a step, estimated", ("what", "bytes"), holds),
            ("Shapes and assumptions", ("",), [*unknown, *((line,) for line in self._shapes())]),
        ]

    def _shapes(self) -> list[str]:
        lines = [
            "a ragged last batch: none, the feed drops the rest of an epoch and pads an evaluation with rows of weight 0"
        ]
        if self.lazy:
            p = self.programs
            lines.append(
                "another resolution: graphs are keyed by shapes, so another --img_size compiles all of train's and eval's"
            )
            lines.append(
                f"compilations end, by the text, after the first step ({p['train'].graphs}), the first evaluated batch "
                f"({p['eval'].graphs}) and the first log ({p['log'].graphs}); then none but for new shapes"
            )
        if self.run:
            shapes = ", ".join(f"{n} of {list(s)}" for s, n in self.run.shapes.items())
            lines.insert(1, f"training batches that were run: {shapes or 'none'}")
            if self.run.other_failed:
                lines.append(f"a batch of another size does not run: {self.run.other_failed}")
            elif self.run.other_size:
                rows, graphs = self.run.other_size
                counted = (
                    f"would compile {graphs} graphs"
                    if self.run.counts
                    else "would compile what the device does not count"
                )
                lines.append(f"a batch of another size ({rows} rows) {counted}")
        return lines

    def _of_the_run(self) -> list[Section]:
        if self.run is None:
            return []
        r = self.run
        rows: list[Row] = [
            (x.phase, str(x.flushes), "" if x.predicted < 0 else str(x.predicted), str(x.marks), str(x.compiles),
             str(x.cache_hits), str(x.fallbacks), str(x.host_reads)) for x in r.rows
        ]  # fmt: skip
        columns = ("phase", "flushes", "by the text", "marks", "compiles", "cache hits", "fallbacks", "host reads")
        said = []
        if not r.counts:
            said.append("the device counts nothing of its own: flushes are the marks")
        if not r.records:
            lines = (
                "those of the ops under the probe" if r.fine else "only those of host reads and of numbers that change"
            )
            said.append(f"the device keeps no record of its flushes: lines are {lines}")
        if r.peak_bytes:
            said.append(
                f"the most that was alive while a graph of a step ran, by the device's record: {size(r.peak_bytes)}"
            )
        if grown := [x.phase for x in r.rows if x.compiles and x.phase != OTHER]:
            said.append(f"graphs were compiled in: {', '.join(dict.fromkeys(grown))}")
        return [("Counted", columns, rows), ("Of the counting", ("",), [(line,) for line in said])]

    def table(self) -> str:
        """Aligned text."""
        head = f"{self.module} on {self.title}, precision {self.precision}, ranks: {self.world}"
        parts = [head, *(_aligned(*section) for section in self.sections()), self.said()]
        return "\n\n".join(parts)

    def said(self) -> str:
        """The findings, as text."""
        if not self.findings:
            return "Findings\n  none" + ("" if self.run else " in the text; --run looks at what really happens")
        lines = ["Findings"]
        for f in self.findings:
            lines += [f"  {f.severity}: {f.what}", *([f"    at {f.where}"] if f.where else []), f"    {f.remedy}"]
        return "\n".join(lines)

    def markdown(self) -> str:
        """The same as Markdown."""
        lines = [f"# {self.module} on {self.title}", "", f"Precision {self.precision}, ranks: {self.world}.", ""]
        lines += ["![what the host and the device do](timeline.svg)", "", "## Findings", ""]
        for f in self.findings:
            lines += [
                f"- **{f.severity}**: {f.what}" + (f"; `{f.where}`" if f.where else "") + f". Remedy: {f.remedy}."
            ]
        lines += [] if self.findings else ["None."]
        for title, columns, rows in self.sections():
            cells = [["" if c == "" else c for c in columns], ["---"] * len(columns), *rows]
            lines += [
                "",
                f"## {title}",
                "",
                *("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells),
            ]
        return "\n".join(lines) + "\n"


def _regions(items: Sequence[Item]) -> list[tuple[Item, int]]:
    from vitcore.doctor.static import flattened

    return [(item, times) for item, times in flattened(items) if item.kind == "region"]


def _again(outline: Outline) -> str:
    return f"{outline.graphs_again} more" if outline.graphs_again else "none"


def _aligned(title: str, columns: Row, rows: list[Row]) -> str:
    cells = [columns, *rows] if any(columns) else rows
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join([title, *("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in cells)])


def _run_dict(run: Run) -> dict[str, Any]:
    """A run without its thousands of ops: flushes are added up by what caused them."""
    causes = Counter((s.at, s.cause, s.line, s.declared, s.compiled) for s in run.seen if s.phase != OTHER)
    keys = ("at", "cause", "line", "declared", "compiled")
    return {
        "rows": [asdict(r) for r in run.rows],
        "flushes": [{**dict(zip(keys, key)), "times": n} for key, n in causes.items()],
        "batches": [{"shape": list(s), "times": n} for s, n in run.shapes.items()],
        "another_size": None if run.other_size is None else dict(zip(("rows", "graphs"), run.other_size)),
        "probed": [{"ops": len(p.calls), "copies_seen": p.copies, "copied_bytes_seen": p.copied_bytes} for p in run.steps],
        "peak_bytes": run.peak_bytes,
        "records": run.records, "counts": run.counts, "failure": run.failure,
    }  # fmt: skip
