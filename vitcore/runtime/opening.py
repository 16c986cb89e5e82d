"""Opening a backend: its environment before torch, its imports, its device; or one refusal that says why."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable

from vitcore.backend import Backend, resolve
from vitcore.errors import VitcoreError
from vitcore.plugins import Plugins
from vitcore.simulation import simulated


def unavailable(backend: Backend) -> str | None:
    """Why the backend cannot run here, or None; torch is not imported to find out."""
    if backend.probe is None:
        return None
    try:
        return resolve(backend.probe)()
    except Exception as e:  # a stranger's probe: whatever it raises is the reason
        return f"its probe {backend.probe!r} failed: {type(e).__name__}: {e}"


def choose_backend(plugins: Plugins, name: str, *, simulate: bool = False) -> tuple[Backend, str]:
    """The backend that `--backend` means, and why: `auto` is the highest rank that can run here."""
    if name != "auto":
        backend = plugins.backend(name)
        backend = simulated(plugins, backend) if simulate else backend
        reason = unavailable(backend)
        if reason is not None:
            raise VitcoreError(f"backend {name!r} cannot run here: {reason}")
        return backend, "asked for"
    passed_over: list[str] = []
    for backend in sorted(plugins.backends.values(), key=lambda b: -b.rank):
        reason = unavailable(backend)
        if reason is None:
            over = f"; passed over: {', '.join(passed_over)}" if passed_over else ""
            return backend, f"the first that can run here{over}"
        passed_over.append(f"{backend.name} ({reason.split(';')[0]})")
    raise VitcoreError(f"no backend can run here: {'; '.join(passed_over) or 'none is installed'}")


def set_environment(backend: Backend, plugins: Plugins | None = None) -> None:
    """Set what the backend's libraries read when they are first imported, before torch is.

    Where torch is imported already, the environment must agree already.
    """
    wrong = {k: v for k, v in backend.env.items() if os.environ.get(k) != v}
    if wrong and "torch" in sys.modules:
        early = (
            f" (imported by plugin {', '.join(plugins.imported_torch)})" if plugins and plugins.imported_torch else ""
        )
        first = "; ".join(f"os.environ[{k!r}] = {v!r}" for k, v in wrong.items())
        raise VitcoreError(
            f"backend {backend.name!r} needs its environment before torch is imported, and torch is imported "
            f"already{early}; put this first: import os; {first}"
        )
    os.environ.update(wrong)
    if backend.failure:  # what the device's libraries do while torch is imported fails there
        explained(backend, "importing torch", lambda: importlib.import_module("torch"))


def open_backend(backend: Backend, plugins: Plugins | None = None) -> None:
    """Set the backend's environment, import what registers its device, and open it; refuse what cannot run here."""
    reason = unavailable(backend)
    if reason is not None:
        raise VitcoreError(f"backend {backend.name!r} cannot run here: {reason}")
    set_environment(backend, plugins)
    if backend.simulator:
        resolve(backend.simulator.install)(backend)
    for name in backend.imports:
        explained(backend, f"importing {name}", functools.partial(importlib.import_module, name))
    if backend.open:
        explained(backend, f"opening it by {backend.open}", resolve(backend.open))


# Where fewer threads were placed than torch would take: how many it would, so that the next to place them says so too.
_own_threads: dict[int, int] = {}


def place_threads(backend: Backend, asked: int) -> str:
    """Give torch's operators on the host `asked` threads, or for 0 no more than the backend says this process may use. Returns
    what is to be said of it, which is nothing where torch's own choice holds."""
    import torch

    if asked:
        torch.set_num_threads(asked)
        return ""
    most, own = resolve(backend.threads)() if backend.threads else None, torch.get_num_threads()
    own = _own_threads.get(own, own)
    if most is None or most >= own:
        return ""
    torch.set_num_threads(most)
    _own_threads[most] = own
    return f"threads: {most}, for as many cores may this process use; torch would take {own}; --threads sets another number"


def explained(backend: Backend, what: str, act: Callable[[], object]) -> None:
    """Do it; what a device's libraries raise (AssertionError, OSError and others) becomes one sentence."""
    try:
        act()
    except VitcoreError:
        raise
    except Exception as e:
        said = resolve(backend.failure)(e) if backend.failure else None
        raise VitcoreError(f"backend {backend.name!r}: {said or f'{what} failed: {type(e).__name__}: {e}'}") from e
