"""What each claimed kernel costs in flushes: the same module, lowered without it, beside the one that runs.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitcore.doctor.flushes import predicted
from vitcore.runtime.reference import REFERENCE
from vitcore.step.ir import walk
from vitcore.step.ops import FUNCTIONS

if TYPE_CHECKING:
    from vitcore.plan import Plan

_UNITS = {"train": "a step", "eval": "an evaluated batch", "log": "a log", "init": "a start", "restore": "a restore"}


@dataclass(frozen=True)
class Cost:
    """A claimed kernel's flushes in one program, and those of the program on the reference kernel."""

    op: str
    kernel: str
    program: str
    flushes: int
    reference: int

    def __str__(self) -> str:
        more, unit = self.flushes - self.reference, _UNITS[self.program]
        if not more:
            return f"{self.op} by {self.kernel}: as many flushes {unit} as the reference"
        noun = "flush" if abs(more) == 1 else "flushes"
        return f"{self.op} by {self.kernel}: {abs(more)} {noun} {unit} {'more' if more > 0 else 'fewer'} than the reference"


def kernel_costs(plan: Plan) -> list[Cost]:
    """A line for each kernel that a backend claims and each program that it stands in; none on a device that is not lazy."""
    if not plan.backend.lazy:
        return []
    plain = {(k.op, k.name) for k in REFERENCE}
    found = []
    for op, kernel in _claimed(plan):
        without = plan.lower_with([k for k in plan.kernels if k.op != op or (k.op, k.name) in plain])
        for program in plan.lowered.programs:
            if _stands(program.ops, op, kernel):
                flushes, reference = predicted(program.ops), predicted(without[program.name].ops)
                found.append(Cost(op, kernel, program.name, flushes, reference))
    return found


def _claimed(plan: Plan) -> list[tuple[str, str]]:
    plain = {(k.op, k.name) for k in REFERENCE}
    ops = [op for program in plan.lowered.programs for op in walk(program.ops)]
    chosen = [(op.name, op.attrs["impl"]) for op in ops if "impl" in op.attrs]
    chosen += [(f, op.attrs[f]) for op in ops for f in FUNCTIONS if f in op.attrs]
    return [c for c in dict.fromkeys(chosen) if c not in plain]


def _stands(ops, name: str, kernel: str) -> bool:
    return any(
        (op.name == name and op.attrs.get("impl") == kernel) or (name in FUNCTIONS and op.attrs.get(name) == kernel)
        for op in walk(ops)
    )
