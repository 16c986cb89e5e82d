"""The memory that this process may still take, which is less than the machine's in a container or beside other ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitcore.data.loading.cores import LOCAL_RANKS


def free_and_total(
    environment: Mapping[str, str] = os.environ,
    meminfo: Path = Path("/proc/meminfo"),
    memberships: Path = Path("/proc/self/cgroup"),
    groups: Path = Path("/sys/fs/cgroup"),
) -> tuple[int, int] | None:
    """Bytes: what Linux says can be had without swapping, no more than the control groups above this process allow (version 1
    and 2), shared by the ranks on this machine; and all there is by the same limits. None where the system does not say."""
    try:
        said = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free, total = (1024 * int(said[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError, IndexError):
        return None
    for left, limit in _limits(memberships, groups):
        free, total = min(free, left), min(total, limit)
    ranks = next((int(environment[name]) for name in LOCAL_RANKS if environment.get(name, "").isdecimal()), 1)
    return max(free, 0) // max(1, ranks), total


def _limits(memberships: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """What is left and the limit of each control group above this process, where it has one."""
    try:
        lines = memberships.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _up(groups, path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            for mounted in sorted({controllers, "memory"}):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                yield from _up(groups / mounted, path, *names)


def _up(root: Path, path: str, limit: str, used: str, cache: str) -> Iterator[tuple[int, int]]:
    """From a group up to the root. Inside a container the path may be the host's, and only the root is there."""
    group = root / path.lstrip("/")
    for folder in [group, *group.parents]:
        try:
            most = (folder / limit).read_text().strip()
            if most != "max":
                # Files that were read count as used, and are given back when memory is asked for.
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield int(most) - int((folder / used).read_text()) + int(stat.get(cache, 0)), int(most)
        except (OSError, ValueError):
            pass
        if folder == root:
            return
