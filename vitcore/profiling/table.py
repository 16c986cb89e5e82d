"""A profile as a person reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitcore.profiling.names import BETWEEN, PHASES, STEP, phase_of
from vitcore.profiling.spans import Row, Spans

COSTLIEST = 15


def table(spans: Spans, impls: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """By phase, by op of the program (`impls`: what carries each out), and torch's costliest functions, all a step."""
    has_device = spans.device > 0
    head = f"{spans.steps} steps of {spans.total / spans.steps / 1e3:.3f} ms, the wait for the device at their end included"
    columns = ["host ms", "host %", *(["device ms", "device %"] if has_device else [])]
    by_phase: dict[str, Row] = {name: Row(name) for name in PHASES}
    for row in spans.ops.values():
        of = by_phase[phase_of(row.name)]
        of.host, of.device = of.host + row.host, of.device + row.device
    phases = [[row.name, *_numbers(row, spans)] for row in by_phase.values()]
    ops = [
        [_name(row.name), impls.get(row.name, ""), _calls(row, spans), *_numbers(row, spans)]
        for row in sorted(spans.ops.values(), key=lambda row: row.name == STEP)
    ]
    costly = sorted(spans.inside.items(), key=lambda item: (-item[1].device, -item[1].host))
    if not has_device:
        costly.sort(key=lambda item: -item[1].host)
    inside = [[row.name, _name(op), _calls(row, spans), *_numbers(row, spans)] for (op, _), row in costly[:COSTLIEST]]
    return "\n\n".join([
        head,
        _aligned("by phase", ["phase", *columns], phases),
        _aligned("by op of the program", ["op", "by", "calls", *columns], ops),
        _aligned("the costliest functions of torch", ["function", "in", "calls", *columns], inside),
        *notes,
    ])  # fmt: skip


def _name(op: str) -> str:
    return BETWEEN if op == STEP else op


def _calls(row: Row, spans: Spans) -> str:
    return f"{row.calls / spans.steps:.3g}" if row.name != STEP else ""


def _numbers(row: Row, spans: Spans) -> list[str]:
    out = [f"{row.host / spans.steps / 1e3:.3f}", f"{100 * row.host / spans.total:.1f}"]
    if spans.device > 0:
        out += [f"{row.device / spans.steps / 1e3:.3f}", f"{100 * row.device / spans.device:.1f}"]
    return out


def _aligned(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    numbers = columns.index("host ms") - ("calls" in columns)
    lines = [
        "  ".join(c.ljust(w) if i < numbers else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))).rstrip()
        for row in (columns, *rows)
    ]
    return "\n".join([title, *(f"  {line}" for line in lines)])
