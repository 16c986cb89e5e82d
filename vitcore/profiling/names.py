"""What the parts of a step are called wherever time is told: in tables, in traces, in what `VITCORE_DEBUG=4` prints.

Imports no torch.
"""

from __future__ import annotations

from vitcore.step.ops import OPS

STEP = "step"
"""A whole step."""
MARK, WAIT, BETWEEN = "rt.mark", "rt.wait", "between ops"
"""The flush of a lazy device, waiting for what is pending at the end, and the host's work that no op's kernel does."""

INPUT, FORWARD, BACKWARD, REDUCE, UPDATE, OTHER = "input wait", "forward", "backward", "reduce", "update", "other"
PHASES = (INPUT, FORWARD, BACKWARD, REDUCE, UPDATE, OTHER)

_OF = {
    INPUT: ("data.next", "data.peek", "data.advance", "data.put", "data.augment"),
    FORWARD: ("params.narrow", "model.forward"),
    # `model.grad` by itself is what stands around its own forward and backward: the sum over micro-batches.
    BACKWARD: ("model.grad", "model.backward", "grads.zero", "grads.add"),
    REDUCE: ("grads.all_reduce",),
    UPDATE: ("grads.scale", "grads.norm", "grads.clip", "health.check", "params.ascend", "params.descend", "opt.update",
             "ema.update"),
}  # fmt: skip


def op_of(kernel: str) -> str:
    """The op that the runtime's kernel of this name carries out: `model.forward` for `model_forward__reference`."""
    return kernel.partition("__")[0].replace("_", ".", 1)


def impl_of(kernel: str) -> str:
    """Which kernel of the op it is, the `impl=` of the text."""
    return kernel.partition("__")[2]


def said(kernel: str) -> str:
    """An op and what carries it out, as reports say it: `model.forward by reference`."""
    return f"{op_of(kernel)} by {impl_of(kernel)}"


def phase_of(name: str) -> str:
    """The phase of a step that an op, or another of the names here, belongs to."""
    return next((phase for phase, names in _OF.items() if name in names), OTHER)


KNOWN = frozenset({*OPS, MARK, WAIT, STEP})
"""Every name of a span."""
