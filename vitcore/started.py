"""When this process began, on the clock of `time.monotonic`: from there the wait for a first step counts, Python's own start
and the import of torch included."""

from __future__ import annotations

import os
import time
from pathlib import Path

IMPORTED = time.monotonic()
"""When this module was first imported."""


def process_start(stat: Path = Path("/proc/self/stat")) -> float:
    """Seconds of `time.monotonic` when this process was started, to a hundredth; where the system does not say (others than
    Linux), when this module was imported, which is some hundredths later."""
    try:
        # The command's name may hold spaces and parentheses; field 22 of proc(5) counts from before it.
        after_name = stat.read_text().rpartition(")")[2].split()
        since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        began = time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot)
    except (OSError, ValueError, IndexError, AttributeError):
        return IMPORTED
    # Later than the import: the system's clocks are not of one kind, as in some sandboxes.
    return began if 0 < began <= IMPORTED else IMPORTED
