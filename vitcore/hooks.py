"""Everything a plugin can say, on one page. Hooks compose what exists; nothing in a running step goes through here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from vitcore.backend import Backend, Kernel, Simulator
    from vitcore.flags import Flag
    from vitcore.step.lowering import Pass

hookspec = pluggy.HookspecMarker("vitcore")
hookimpl = pluggy.HookimplMarker("vitcore")


class Hooks:
    """The hookspecs. A hook returns its contribution; contributions of all plugins are joined."""

    @hookspec
    def vitcore_backends(self) -> Iterable[Backend]:  # type: ignore[empty-body]
        """Backends this plugin brings."""

    @hookspec
    def vitcore_kernels(self, backend: str) -> Iterable[Kernel]:  # type: ignore[empty-body]
        """Kernels for a backend, its own or another's; later plugins are asked first, the reference kernels last."""

    @hookspec
    def vitcore_simulators(self) -> Iterable[Simulator]:  # type: ignore[empty-body]
        """Stand-ins for devices, for development; `--simulate` uses the one for the chosen backend, and nothing else does."""

    @hookspec
    def vitcore_passes(self, backend: str) -> Iterable[tuple[str, Pass]]:  # type: ignore[empty-body]
        """(stage, pass): run the pass after the named stage of the backend's lowering."""

    @hookspec
    def vitcore_flags(self) -> Iterable[Flag]:  # type: ignore[empty-body]
        """Command-line flags this plugin understands, such as a vendor's legacy names."""

    @hookspec
    def vitcore_recipes(self) -> Iterable[tuple[str, str]]:  # type: ignore[empty-body]
        """(name, path of a TOML file): recipes this plugin ships."""

    @hookspec
    def vitcore_observers(self, run_dir: str) -> Iterable[object]:  # type: ignore[empty-body]
        """Callables `observer(event: str, values: dict)` that hear of start, train, eval and checkpoint, between steps."""
