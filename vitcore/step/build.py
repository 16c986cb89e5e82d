"""Build the programs of a recipe: what a training step means, once, for every device."""

from __future__ import annotations

from vitcore.rules import OPTIMIZERS, StepSpec, programs
from vitcore.step.ir import Module
from vitcore.step.text import parse
from vitcore.step.verify import verify_module

__all__ = ["OPTIMIZERS", "StepSpec", "build"]


def build(spec: StepSpec) -> Module:
    """The neutral module of a recipe: `init`, `train`, `eval`, `log` and `restore`, verified."""
    attrs = {"optimizer": spec.optimizer, "hyper": "|".join(spec.hypers)}
    return verify_module(Module(spec.name, attrs, spec.groups, tuple(map(parse, programs(spec)))))
