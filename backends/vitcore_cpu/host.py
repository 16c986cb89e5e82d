"""The process on a processor: how many threads compute in it, and large blocks of memory that it keeps."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Mapping

from vitcore.data.loading.cores import usable_cores

# By whose settings the person has chosen already.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
# Of glibc's malloc.h. Blocks up to 32 MiB, its limit, come from the heap and not from a mapping of their own, and what is free at
# the end of the heap stays up to a gibibyte. Either alone stops malloc from adapting, and can be worse than neither.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 32 << 20), (-1, 1 << 30)


def threads(environment: Mapping[str, str] = os.environ) -> int | None:
    """The cores that this process may use: torch counts those of the machine, and a container's quota or the other ranks
    leave fewer. None where the person has said a number to the libraries."""
    return None if any(name in environment for name in _THREADS) else usable_cores(environment)


@functools.cache
def keep_memory() -> bool:
    """Let malloc keep large blocks from step to step, as the scores of attention, which it would give back to the system, to
    be zeroed page by page the next time. Returns whether it was told: not where it is not glibc's, nor where the person has
    tuned it."""
    tuned = any(name in os.environ for name in _MALLOC) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if tuned or not _glibc():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*setting) for setting in (_MMAP_THRESHOLD, _TRIM_THRESHOLD))


def _glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (AttributeError, ValueError, OSError):
        return False
