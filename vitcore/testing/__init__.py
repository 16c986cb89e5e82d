"""For authors of plugins: the conformance kit, and guards to use in tests of one's own.

    from vitcore.testing import BackendConformance

    class TestMine(BackendConformance):
        backend = "mine"

Importing it imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitcore.testing.conformance import BackendConformance

if TYPE_CHECKING:
    from vitcore.runtime.guards import HostReadError, no_host_reads

__all__ = ["BackendConformance", "HostReadError", "no_host_reads"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vitcore.runtime import guards

        return getattr(guards, name)
    raise AttributeError(name)
