"""`--compile`: whether a run takes the leaf `compiled`, decided before anything is lowered, without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vitcore.backend import Backend, Kernel, resolve
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.folders import user_cache
from vitcore.model.variants import find_variant
from vitcore.model.work import ASSUMED_CLASSES, step_operations

KERNEL = "compiled"


def choose_compile(config: Config, backend: Backend, offered: Sequence[Kernel]) -> tuple[bool, str]:
    """Whether to compile, and what is to be said of it; `auto` takes it where the run is long enough to pay for it, by the
    backend's own number (`Backend.compile_pays`).

    Raises VitcoreError where it is asked for and cannot be.
    """
    if config.compile == "no":
        return False, ""
    lacks = _lacks(backend, offered)
    if config.compile == "yes":
        if lacks:
            raise VitcoreError(f"--compile yes: {lacks}")
        return True, ""
    if lacks:
        return False, f"compile auto: no; {lacks}"
    if config.model_type is None:
        unknown = "the model's type, by which a run is measured, is only in its file; give --model_type"
        return False, f"compile auto: no; {unknown}"
    variant, images = find_variant(config.model_type), config.train_batch_size * config.num_steps
    work = step_operations(variant, config.img_size, ASSUMED_CLASSES, images)
    pays = backend.compile_pays is not None and work >= backend.compile_pays
    least = "never by itself" if backend.compile_pays is None else f"from {backend.compile_pays:.0e} on"
    taken = "yes" if pays else "no"
    return pays, f"compile auto: {taken}; the run has {work:.1e} operations, compiling pays {least} here"


def keep_compiled() -> None:
    """Let what is compiled be found by the next process, in the user's cache and not in a temporary folder; before torch is
    imported."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache() / "inductor"))
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")


def _lacks(backend: Backend, offered: Sequence[Kernel]) -> str:
    if backend.compiler is None or not any(k.name == KERNEL for k in offered):
        return f"backend {backend.name!r} has no leaf `{KERNEL}`; leave it out, or choose another backend"
    missing: str | None = resolve(backend.compiler_probe)() if backend.compiler_probe else None
    return missing or ""
