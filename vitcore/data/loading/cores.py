"""How many cores this process may use, which is fewer than the machine has in a container or beside other ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Ranks on this machine, as launchers say it: torchrun, Open MPI, MVAPICH, MPICH and Intel MPI.
LOCAL_RANKS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def usable_cores(
    environment: Mapping[str, str] = os.environ,
    memberships: Path = Path("/proc/self/cgroup"),
    groups: Path = Path("/sys/fs/cgroup"),
) -> int:
    """The whole cores for this process, at least 1: those it may be scheduled on, no more than its control groups allow
    (version 1 and 2), divided among the ranks on this machine."""
    # Not everywhere: macOS has no affinity.
    scheduled = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([float(scheduled), *_quotas(memberships, groups)])
    ranks = next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdecimal()), 1)
    return max(1, int(cores) // max(1, ranks))


def _quotas(memberships: Path, groups: Path) -> Iterator[float]:
    """Cores that each control group above this process allows, where it limits them."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _up(groups, path, _version_2)
        else:  # which of the controllers it is that limits cores, its files say
            for mounted in sorted({controllers, *controllers.split(",")}):
                yield from _up(groups / mounted, path, _version_1)


def _up(root: Path, path: str, quota: Callable[[Path], float | None]) -> Iterator[float]:
    """The limits from a group up to the root. Inside a container the path may be the host's, and only the root is there."""
    group = root / path.lstrip("/")
    for folder in [group, *group.parents]:
        if (found := quota(folder)) is not None:
            yield found
        if folder == root:
            return


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
