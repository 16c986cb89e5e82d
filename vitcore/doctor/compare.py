"""Two steps under the probe, side by side: what a recording device would take for another graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitcore.doctor.probe import Probed


@dataclass(frozen=True)
class Difference:
    """A `number`, a `shape`, or the `ops` themselves, which differ between one step and the next."""

    kind: str
    at: str
    name: str
    line: str
    old: str
    new: str

    def __str__(self) -> str:
        if self.kind == "number":
            return f"a Python number changes each step, {self.old} then {self.new}, in {self.name}"
        if self.kind == "shape":
            return f"shapes change from step to step, {self.old} then {self.new}, in {self.name}"
        return f"the steps record other ops, {self.old} then {self.new}"


def differences(steps: Sequence[Probed]) -> list[Difference]:
    """Every difference up to the first other op, from which on nothing can be compared."""
    if len(steps) < 2:
        return []
    found: list[Difference] = []
    first, second = steps[0].calls, steps[1].calls
    for a, b in zip(first, second):
        if (a.at, a.name) != (b.at, b.name):
            return [*found, Difference("ops", b.at, b.name, b.line, a.name, b.name)]
        if a.shapes != b.shapes:
            found.append(Difference("shape", b.at, b.name, b.line, str(a.shapes), str(b.shapes)))
        elif a.numbers != b.numbers:
            old, new = next((x, y) for x, y in zip(a.numbers, b.numbers) if x != y)
            found.append(Difference("number", b.at, b.name, b.line, f"{old:.6g}", f"{new:.6g}"))
    if len(first) != len(second):
        longer = first if len(first) > len(second) else second
        extra = longer[min(len(first), len(second))]
        found.append(Difference("ops", extra.at, extra.name, extra.line, f"{len(first)} ops", f"{len(second)} ops"))
    return found
