"""How often a program flushes a lazy device, by its text alone."""

from __future__ import annotations

from collections.abc import Iterable

from vitcore.step.ir import Op


def predicted(ops: Iterable[Op]) -> int:
    """How often a program flushes by its text: its marks and what its kernels declare, loops counted."""
    count = 0
    for op in ops:
        inner = predicted(op.body) * (int(op.attrs["n"]) if op.name == "repeat" else 1)
        count += inner + (op.name == "rt.mark") + sum(op.flushes)
    return count
