"""What the conformance kit checks, C1 to C13, by name: each a function of the subject that returns what it found, raises
`Failure`, or says by `NotApplicable` why a device has no such thing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitcore.testing.problem import Subject


class Failure(AssertionError):
    """A check that does not hold: what was found, where, and what to do."""


class NotApplicable(Exception):
    """Why the check says nothing of this backend."""


@dataclass(frozen=True)
class Check:
    """One row of the table; its function is named, so that listing checks imports no torch."""

    name: str
    claim: str
    function: str

    def run(self, subject: Subject) -> str:
        """Check, and say in a few words what was seen."""
        module, _, function = self.function.partition(":")
        check: Callable[[Subject], str] = getattr(import_module(f"vitcore.testing.checks.{module}"), function)
        return check(subject)


CHECKS: dict[str, Check] = {
    c.name: c
    for c in (
        Check("C1", "discovery and lowering import no torch", "text:no_torch"),
        Check("C2", "every shipped program lowers, seals and reads back", "text:lowers"),
        Check(
            "C3", "losses, gradients and parameters are as near to float64 as the reference's", "numbers:near_float64"
        ),
        Check("C4", "nothing in a region waits for the host", "counts:no_host_read"),
        Check("C5", "nothing is compiled, and no state appears, after warm-up", "counts:compile_budget"),
        Check("C6", "the device is flushed as often as the program says", "counts:flushes"),
        Check("C7", "accumulating micro-batches is one large batch", "numbers:accumulation"),
        Check("C8", "a checkpoint goes to the host and back and on to the same bits", "state:travels"),
        Check("C9", "two runs, each in its own process, end in the same bits", "state:repeatable"),
        Check("C10", "two ranks are one rank with the joined batch", "ranks:two_ranks"),
        Check("C11", "what is not supported is refused by name before a step", "text:refusals"),
        Check("C12", "it closes and opens again, and leaves nothing behind", "state:reopens"),
        Check("C13", "ops leave what they borrow as it was, and a fault is found in its op", "numbers:boundaries"),
    )
}
