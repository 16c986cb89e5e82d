"""The memory that this process may still take, which is less than the machine's in a container or beside other ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from vitcore.control_groups import GROUPS, MEMBERSHIPS, groups_above, ranks_here

# The files of a control group that say its limit and what it uses, and of the latter what is given back when memory is asked
# for, which files that were read are.
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def free_and_total(
    environment: Mapping[str, str] = os.environ,
    meminfo: Path = Path("/proc/meminfo"),
    memberships: Path = MEMBERSHIPS,
    groups: Path = GROUPS,
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
    return max(free, 0) // ranks_here(environment), total


def _limits(memberships: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """What is left and the limit of each control group above this process, where it has one."""
    for version, folder in groups_above(memberships, groups):
        limit, used, cache = _FILES[version]
        try:
            most = (folder / limit).read_text().strip()
            if most != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield int(most) - int((folder / used).read_text()) + int(stat.get(cache, 0)), int(most)
        except (OSError, ValueError):
            pass
