"""For authors of plugins: the conformance kit, and guards to use in tests of one's own.

    from vitcore.testing import BackendConformance, no_host_reads

    class TestMine(BackendConformance):
        backend = "mine"

Importing it imports no torch; the guards import it when they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcore.testing.conformance import BackendConformance

if TYPE_CHECKING:
    from vitcore.testing.guards import (
        Counted,
        GuardError,
        HostReadError,
        compile_budget,
        counted,
        flushes_as_predicted,
        no_fallbacks,
        no_hidden_copies,
        no_host_reads,
    )

__all__ = [
    "BackendConformance",
    "Counted",
    "GuardError",
    "HostReadError",
    "compile_budget",
    "counted",
    "flushes_as_predicted",
    "no_fallbacks",
    "no_hidden_copies",
    "no_host_reads",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vitcore.testing import guards

        return getattr(guards, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
