"""Which simulator stands in for a backend's device, where `--simulate` asks for one. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from vitcore.backend import Backend
from vitcore.errors import VitcoreError
from vitcore.plugins import Plugins


def simulated(plugins: Plugins, backend: Backend) -> Backend:
    """The backend with its device simulated; VitcoreError where no simulator for it is installed, or two are."""
    installed = [s for some in plugins.ask("vitcore_simulators") for s in some]
    for_it = [s for s in installed if backend.name in s.backends]
    if not for_it:
        known = ", ".join(f"{s.name} for {' and '.join(s.backends)}" for s in installed)
        raise VitcoreError(
            f"--simulate: no simulator of backend {backend.name!r} is installed (installed: {known or 'none'}); install "
            "one, or leave --simulate out"
        )
    if len(for_it) > 1:
        raise VitcoreError(f"--simulate: {' and '.join(s.name for s in for_it)} both simulate backend {backend.name!r}; "
                           "uninstall one, or choose with VITCORE_PLUGINS")  # fmt: skip
    return replace(backend, simulator=for_it[0], probe=for_it[0].probe)
