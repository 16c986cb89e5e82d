"""What a recording device says of itself, flush by flush, where its backend or simulator keeps a record."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """One time that a lazy device was made to work."""

    cause: str
    """Why: `mark`, or what made it flush unasked, such as `item`, `copy to the host`, `fallback aten.nonzero`."""
    line: str
    """The innermost line of Python that is neither torch's nor the device's: file:line: text."""
    ops: int
    """Operations in the graph; 0: nothing was waiting."""
    compiled: bool
    """Whether the graph was new."""
    peak_bytes: int
    """The most bytes alive while the graph ran, its inputs counted."""
