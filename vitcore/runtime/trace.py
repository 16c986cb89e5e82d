"""`VITCORE_DEBUG` 4 and 5: every op timed, every result hashed at the op's boundary."""

from __future__ import annotations

import functools
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

from vitcore.profiling.names import said


def tracer(level: int, wait: Callable[[], None]) -> Callable[[str, Callable[..., Any]], Callable[..., Any]] | None:
    """A wrapper for kernels that prints one line a call to standard error; None below level 4.

    It waits for the device after every op, so times add up but do not overlap as they do without it.
    """
    if level < 4:
        return None

    def wrap(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def traced(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            out = kernel(*args, **kwargs)
            wait()
            line = f"{said(name)}: {(time.perf_counter() - start) * 1e3:.3f} ms"
            print(line + (f" #{digest(out):08x}" if level >= 5 else ""), file=sys.stderr)
            return out

        return traced

    return wrap


def digest(value: Any) -> int:
    """A checksum over every tensor in a nest of tuples, lists and dicts."""
    if isinstance(value, torch.Tensor):
        with _disable_current_modes():  # a read that was asked for, also inside a guarded region
            return zlib.crc32(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    if isinstance(value, dict):
        value = [v for _, v in sorted(value.items())]
    if isinstance(value, (tuple, list)):
        total = 0
        for v in value:
            total = zlib.crc32(digest(v).to_bytes(4, "little"), total)
        return total
    return zlib.crc32(repr(value).encode())
