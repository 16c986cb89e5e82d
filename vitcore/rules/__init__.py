"""Training rules: what a step means, as programs. A new rule is a program here, never an `if` in the trainer.

The programs are texts of the language of `vitcore.step`, put together from lines; `vitcore.step.build` parses and verifies
them. No torch here.
"""

from __future__ import annotations

from vitcore.rules.plain import plain
from vitcore.rules.sam import sam
from vitcore.rules.spec import OPTIMIZERS, StepSpec
from vitcore.rules.state import eval_, init, log, restore

__all__ = ["OPTIMIZERS", "StepSpec", "programs"]


def programs(spec: StepSpec) -> tuple[str, ...]:
    """The texts of a recipe's module: `init`, `train`, `eval`, `log` and `restore`."""
    return init(spec), (sam if spec.sam else plain)(spec), eval_(spec), log(spec), restore(spec)
