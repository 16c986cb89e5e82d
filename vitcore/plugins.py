"""Discovery: built-in backends and strangers' packages come through the same door, the entry-point group `vitcore`.

`VITCORE_PLUGINS=a,b` loads exactly those entry points; `VITCORE_TRACE_HOOKS=1` prints every hook call. A plugin that
fails to import is named and the others go on. Nothing here imports torch, and a plugin that does is named too.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from vitcore.backend import Backend, Kernel
from vitcore.errors import VitcoreError, nearest
from vitcore.hooks import Hooks

GROUP = "vitcore"


@dataclass
class Plugins:
    """What was found: the plugin manager, the backends with their plugin, and what failed with its reason."""

    manager: pluggy.PluginManager
    entries: dict[str, EntryPoint] = field(default_factory=dict)
    backends: dict[str, Backend] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    imported_torch: list[str] = field(default_factory=list)

    def backend(self, name: str) -> Backend:
        """The backend called `name`; an unknown name suggests the nearest."""
        if name in self.backends:
            return self.backends[name]
        known = [*self.backends]
        broken = "".join(f"; plugin {p} failed to load: {why}" for p, why in self.failed.items())
        raise VitcoreError(
            f"backend {name!r} is not known{nearest(name, known)}; installed backends: {', '.join(known)}{broken}"
        )

    def ask(self, hook: str, **said: Any) -> list[list[Any]]:
        """What each plugin contributes to a hook, later plugins first; an error in one names it."""
        contributions = []
        for plugin, call in reversed(self.calls(hook)):
            try:
                contributions.append([x for some in call(**said) for x in some])
            except VitcoreError:
                raise
            except Exception as e:  # a stranger's code
                raise VitcoreError(
                    f"plugin {plugin}: its {hook} failed: {_line(e)}; correct or uninstall {self.package(plugin)}, or "
                    "leave it out with VITCORE_PLUGINS"
                ) from e
        return contributions

    def calls(self, hook: str) -> list[tuple[str, Callable[..., list[Any]]]]:
        """The plugins that have a hook, in the order of their registration, and a call of the hook for each alone."""
        impls = getattr(self.manager.hook, hook).get_hookimpls()
        plugins = self.manager.get_plugins()
        return [
            (i.plugin_name, self.manager.subset_hook_caller(hook, [p for p in plugins if p is not i.plugin]))
            for i in impls
        ]

    def package(self, plugin: str) -> str:
        """The distribution that brings a plugin, with its version; it is read from the disk, so not asked for early."""
        return _package(self.entries[plugin])

    def kernels(self, backend: str) -> list[Kernel]:
        """Plugins' kernels in the order in which they are asked."""
        return [k for some in self.ask("vitcore_kernels", backend=backend) for k in some]

    @property
    def complaints(self) -> list[str]:
        """One line for each plugin that failed to load or imports torch when it is loaded."""
        failed = [f"plugin {name} failed to load, the others go on: {why}" for name, why in self.failed.items()]
        return failed + [
            f"plugin {name} imports torch when it is loaded; it should import it when its kernels run"
            for name in self.imported_torch
        ]


@functools.cache
def load_plugins() -> Plugins:
    """Load every plugin once a process; see the module for what can be chosen and what is reported."""
    manager = pluggy.PluginManager("vitcore")
    manager.add_hookspecs(Hooks)
    if os.environ.get("VITCORE_TRACE_HOOKS"):
        manager.trace.root.setwriter(lambda text: print(text, end="", file=sys.stderr))
        manager.enable_tracing()
    found = Plugins(manager)
    for entry in _wanted():
        _load(found, entry)
    for plugin, call in found.calls("vitcore_backends"):
        try:
            backends = [b for some in call() for b in some]
        except Exception as e:  # a stranger's code: whatever it raises, the others go on
            found.failed[plugin] = _line(e)
            continue
        for backend in backends:
            _enter(found, backend, plugin)
    return found


def _wanted() -> list[EntryPoint]:
    unique: dict[str, EntryPoint] = {}
    for e in sorted(entry_points(group=GROUP), key=lambda e: e.name):
        if unique.setdefault(e.name, e) != e:
            raise VitcoreError(
                f"two packages bring a plugin named {e.name!r}: {_package(unique[e.name])} and {_package(e)}; "
                "uninstall one"
            )
    if "VITCORE_PLUGINS" not in os.environ:
        return [*unique.values()]
    names = [n.strip() for n in os.environ["VITCORE_PLUGINS"].split(",") if n.strip()]
    for name in names:
        if name not in unique:
            raise VitcoreError(
                f"VITCORE_PLUGINS names {name!r}, which is not installed{nearest(name, [*unique])}; "
                f"installed plugins: {', '.join(unique) or 'none'}"
            )
    return [unique[n] for n in dict.fromkeys(names)]


def _load(found: Plugins, entry: EntryPoint) -> None:
    had_torch = "torch" in sys.modules
    found.entries[entry.name] = entry
    try:
        plugin = entry.load()
        found.manager.register(plugin, name=entry.name)
        found.manager.check_pending()
    except Exception as e:  # as above
        if found.manager.has_plugin(entry.name):
            found.manager.unregister(name=entry.name)
        found.failed[entry.name] = _line(e)
    if "torch" in sys.modules and not had_torch:
        found.imported_torch.append(entry.name)


def _enter(found: Plugins, backend: Backend, plugin: str) -> None:
    if backend.name in found.backends:
        both = f"{found.package(found.origin[backend.name])} and {found.package(plugin)}"
        raise VitcoreError(
            f"two plugins bring a backend named {backend.name!r}: {both}; uninstall one, or choose with VITCORE_PLUGINS"
        )
    found.backends[backend.name] = backend
    found.origin[backend.name] = plugin


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version} ({entry.value})" if entry.dist is not None else entry.value


def _line(error: Exception) -> str:
    """The error in one line; pluggy's have several."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
