"""Values at the boundaries of ops: recorded from a running program, and compared with float64."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from vitcore.runtime.trace import digest
from vitcore.step.ops import OPS
from vitcore.testing.problem import host_leaves

Records = dict[tuple[str, int, str], Tensor]
"""Values on the host by (op, how often that op ran before, name in its results)."""

# Of the host, or nothing but zeros: what follows from them is looked at.
_UNSEEN = frozenset({"data.next", "rng.split", "data.put", "metrics.read", "metrics.zero", "opt.init", "grads.zero"})

# What `model.grad` does, of which the last only where it is given a sum.
_IN_ONE = ("model.forward", "model.backward", "grads.add")

FACTOR = 8.0
"""How many times further from float64 than the reference a backend may be. Other orders of summation stay below 3."""
# Relative distances that are a few roundings: of float32, and of a narrow dtype in the model. The reference may be nearer by
# chance, most of all where the value is one number: then a whole rounding of bfloat16 is none too many.
FLOOR, NARROW_FLOOR, NARROW_NUMBER_FLOOR = 5e-7, 1e-3, 2.0**-8


class Recorder:
    """Wraps every kernel of an executable (`wrap`): notes the results of the outermost calls, and every operand that was
    borrowed and yet changed. `fault` (op, number) multiplies the results of one call, to see that it is noticed. On a lazy
    device `flush` is called before values are read: reading a part of what is pending is not what a step does."""

    def __init__(self, fault: tuple[str, int] | None = None) -> None:
        self.records: Records = {}
        self.written: list[str] = []
        self.names: Sequence[str] = ()
        self.fault = fault
        self.flush: Callable[[], object] = lambda: None
        self.impls: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._inside = False

    def __call__(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        op = name.partition("__")[0].replace("_", ".", 1)
        impl = name.partition("__")[2]
        for part in (op, *(_IN_ONE if op == "model.grad" else ())):
            self.impls.setdefault(part, impl)
        takes = OPS[op].takes

        @functools.wraps(kernel)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return kernel(*args, **kwargs)
            number = self._counts.get(op, 0)
            self._counts[op] = number + 1
            borrowed = {i: a for i, a in enumerate(args) if i not in takes and not _host_only(a)}
            self.flush()
            before = {i: digest(a) for i, a in borrowed.items()}
            self._inside = True
            try:
                out = kernel(*args, **kwargs)
            finally:
                self._inside = False
            self.flush()
            self.written += [f"operand {i} of {op}" for i, a in borrowed.items() if digest(a) != before[i]]
            for part, value in _parts(op, out, adds=len(args) > 3):
                if (part, number) == self.fault:
                    _spoil(value)
                    self.flush()
                self._note(part, number, value)
            return out

        return recorded

    def _note(self, op: str, number: int, value: Any) -> None:
        if op in _UNSEEN:
            return
        with _disable_current_modes():
            for name, tensor in host_leaves(value, self.names).items():
                self.records[op, number, name] = tensor.double()


def _parts(op: str, out: Any, *, adds: bool) -> list[tuple[str, Any]]:
    """What is noted of an op's results, and as whose: an op that does the work of several has what those would have."""
    if op == "model.grad":
        return [("model.forward", out[0]), ("grads.add" if adds else "model.backward", out[1])]
    return [(op, out[0] if op == "model.forward" else out)]  # a tape is no value


def _host_only(value: Any) -> bool:
    return not isinstance(value, (Tensor, tuple, list, dict))


@torch.no_grad()
def _spoil(value: Any) -> None:
    """Multiply, in place, every tensor of floats in a nest."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            value.mul_(1.5)
    elif isinstance(value, (dict, tuple, list)):
        for each in value.values() if isinstance(value, dict) else value:
            _spoil(each)


@dataclass(frozen=True)
class Divergence:
    """The first op, in the order of the program, whose result is too far from float64."""

    op: str
    number: int
    name: str
    times: float
    distance: float
    impl: str = ""

    def __str__(self) -> str:
        ran = f" (its call {self.number + 1})" if self.number else ""
        further = f"{self.times:.3g}x further from float64 than the reference"
        further = further if self.times < float("inf") else "finite where float64 is not, or the other way round"
        kernel = f" by {self.impl}" if self.impl else ""
        what = f"{_said(self.op, self.name)}, {further} (relative distance {self.distance:.2g})"
        return f"first diverging op: {self.op}{kernel}{ran}, {what}"


def _said(op: str, name: str) -> str:
    """What a name in an op's results is, for people."""
    which, _, rest = name.partition(".")
    if op == "model.forward":
        return "the loss"
    if op == "model.apply":
        return "the logits"
    if op in ("grads.clip", "grads.norm") and which in ("", "1"):
        return "the norm"
    if op == "health.check":
        return "the flag" if which == "1" else f"accumulator {rest}"
    if op == "opt.update":
        slot, _, parameter = rest.partition(".")
        return f"parameter {rest}" if which == "0" else f"{slot} of {parameter}" if parameter else slot
    if op.startswith("metrics"):
        return f"accumulator {name}"
    return f"parameter {rest if op == 'grads.clip' else name}"


def first_divergence(
    candidate: Records, reference: Records, exact: Records, usual_exact: Records | None = None, *, narrow: bool = False
) -> Divergence | None:
    """Where the candidate leaves the bound; its own order of ops decides what is first. None where it never does.

    `exact` is what the candidate should compute; the reference's own distance is taken from `usual_exact` where the
    candidate declares another formula than it.
    """
    usual_exact = usual_exact or exact
    far = 0.0  # how far from float64 the reference has been: from there on it may be near again by chance alone
    for op, number in dict.fromkeys((op, number) for op, number, _ in candidate):
        truth = {n: t for (o, i, n), t in exact.items() if (o, i) == (op, number)}
        if not truth:
            continue
        scale = max(_norm(t) for t in truth.values())
        ours = _distances(candidate, truth, op, number, scale)
        usual_truth = {n: t for (o, i, n), t in usual_exact.items() if (o, i) == (op, number)}
        theirs = _distances(reference, usual_truth, op, number, scale)
        usual = sorted(theirs.values())[len(theirs) // 2] if theirs else 0.0
        floors = {n: (NARROW_FLOOR if t.dim() else NARROW_NUMBER_FLOOR) if narrow else FLOOR for n, t in truth.items()}
        far = max(far, *(d for n, d in theirs.items() if truth[n].dim() and d < float("inf")), 0.0)
        ratios = {n: d / max(theirs.get(n, 0.0), usual, floors[n], far) for n, d in ours.items()}
        worst = max(ratios, key=lambda n: ratios[n], default=None)
        if worst is not None and not ratios[worst] <= FACTOR:
            return Divergence(op, number, worst, ratios[worst], ours[worst])
    return None


def _norm(value: Tensor) -> float:
    """The norm of what is finite."""
    return float(torch.nan_to_num(value, 0.0, 0.0, 0.0).norm())


def _distances(found: Records, truth: Mapping[str, Tensor], op: str, number: int, scale: float) -> dict[str, float]:
    out = {}
    for name, exact in truth.items():
        value = found.get((op, number, name))
        if value is None:
            continue
        same = (value == exact) | ~(value.isfinite() | exact.isfinite())  # infinite and not a number alike
        difference = torch.where(same, torch.zeros_like(exact), value - exact)
        distance = float(difference.norm()) / max(_norm(exact), 1e-2 * scale, 1e-12)
        out[name] = distance if distance == distance else float("inf")
    return out
