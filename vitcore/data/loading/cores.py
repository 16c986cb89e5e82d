"""How many cores this process may use, which is fewer than the machine has in a container or beside other ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitcore.control_groups import GROUPS, MEMBERSHIPS, groups_above, ranks_here


def usable_cores(
    environment: Mapping[str, str] = os.environ, memberships: Path = MEMBERSHIPS, groups: Path = GROUPS
) -> int:
    """The whole cores for this process, at least 1: those it may be scheduled on, no more than its control groups allow
    (version 1 and 2), divided among the ranks on this machine."""
    # Not everywhere: macOS has no affinity.
    scheduled = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([float(scheduled), *_quotas(memberships, groups)])
    return max(1, int(cores) // ranks_here(environment))


def _quotas(memberships: Path, groups: Path) -> Iterator[float]:
    """Cores that each control group above this process allows, where it limits them."""
    for version, folder in groups_above(memberships, groups):
        if (quota := (_version_2 if version == 2 else _version_1)(folder)) is not None:
            yield quota


def _version_2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _version_1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None
