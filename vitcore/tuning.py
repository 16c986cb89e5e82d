"""Which of several kernels is the fastest here: measured once for each machine, torch, backend and shape, and kept.

The measurement is the backend's (`Backend.tune`); this is when it is made, where it is kept, and what follows: the others
are left out, which `--explain` says, so what runs is what was printed. Printing a program measures nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vitcore.backend import Backend, resolve
from vitcore.data.loading.cores import usable_cores
from vitcore.folders import user_cache


@dataclass(frozen=True)
class Shape:
    """What attention computes in one block: `rows` pictures of a micro-batch of `tokens` each, by `heads` of `head_width`; in
    bf16 where `narrow`, else in float32."""

    rows: int
    tokens: int
    heads: int
    head_width: int
    narrow: bool

    def __str__(self) -> str:
        dtype = "bf16" if self.narrow else "f32"
        return f"{self.rows} x {self.tokens} tokens, {self.heads} heads of {self.head_width}, {dtype}"


def left_out(
    backend: Backend, shape: Shape, before: Callable[[], object] | None = None, threads: int = 0
) -> dict[str, str]:
    """The kernels that were measured and are not the fastest, each with the reason. What is not known yet is measured, after
    `before`, which opens the device; without it only what is known already counts. `threads` is `--threads`."""
    if backend.tune is None:
        return {}
    path = folder() / f"{_key(backend, shape, threads)}.json"
    seconds = _read(path)
    if seconds is None and before is not None:
        before()
        seconds = resolve(backend.tune)(shape)
        _write(path, backend, shape, seconds)
        seconds = _read(path) or seconds  # of ranks that measure at once the first one's counts for all
    takes = {name: s for name, s in (seconds or {}).items() if s != math.inf}
    refused = {name: f"tried here, it does not take {shape}" for name in seconds or {} if name not in takes}
    if not takes:
        return refused
    best = min(takes, key=takes.__getitem__)
    than = f"measured here, {best} takes {takes[best] * 1e3:.2f} ms for {shape}"
    return refused | {name: f"{than}, this {s * 1e3:.2f} ms" for name, s in takes.items() if name != best}


def folder() -> Path:
    """Where measurements are kept: `tuning` in the user's cache (`vitcore.folders.user_cache`)."""
    return user_cache() / "tuning"


def _key(backend: Backend, shape: Shape, threads: int = 0) -> str:
    # How many threads compute, and which of the machine's devices this process sees.
    chosen = {n: v for n, v in sorted(os.environ.items()) if n == "OMP_NUM_THREADS" or n.endswith("_VISIBLE_DEVICES")}
    torch = importlib.metadata.version("torch")
    facts = (backend.name, backend.tune, str(shape), torch, _processor(), threads or usable_cores(), chosen)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Its model and what it can do, where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("model name", "flags"))))


def _read(path: Path) -> dict[str, float] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        return {str(name): float(s) for name, s in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or not whole: measured anew


def _write(path: Path, backend: Backend, shape: Shape, seconds: Mapping[str, float]) -> None:
    """Unless another process was first; where nothing can be written, it is measured again the next time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"backend": backend.name, **asdict(shape), "seconds": dict(seconds)}, indent=1))
        try:
            os.link(temporary, path)
        except OSError:  # it is there, or this file system has no links
            if _read(path) is None:
                temporary.replace(path)
        temporary.unlink(missing_ok=True)
