"""The control groups that this process is in, whose limits are a container's, and the ranks that share them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

MEMBERSHIPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

# Ranks on this machine, as launchers say it: torchrun, Open MPI, MVAPICH, MPICH and Intel MPI.
LOCAL_RANKS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")


def ranks_here(environment: Mapping[str, str] = os.environ) -> int:
    """The ranks on this machine, at least 1."""
    return max(1, next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdecimal()), 1))


def groups_above(memberships: Path = MEMBERSHIPS, groups: Path = GROUPS) -> Iterator[tuple[int, Path]]:
    """The folder of each control group from this process's own up to the root, each with the version (1 or 2) of its files; of
    version 1 for every controller, and which it is that limits something, its files say."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from ((2, folder) for folder in _up(groups, path))
        else:
            for mounted in sorted({controllers, *controllers.split(",")}):
                yield from ((1, folder) for folder in _up(groups / mounted, path))


def _up(root: Path, path: str) -> Iterator[Path]:
    """From a group up to the root. Inside a container the path may be the host's, and only the root is there."""
    group = root / path.lstrip("/")
    for folder in [group, *group.parents]:
        yield folder
        if folder == root:
            return
