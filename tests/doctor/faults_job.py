"""Planted mistakes on one backend, in one process: the reports as JSON, by name. `BACKEND [--simulate] [NAME...]`, all without
names."""

import json
import sys
from pathlib import Path

from vitcore.testing.worker import opened

lazy = opened(sys.argv[1], 0, simulate="--simulate" in sys.argv)
sys.path.insert(0, str(Path(__file__).parent))

from faults import NAMES, planted  # noqa: E402

asked = [a for a in sys.argv[2:] if a != "--simulate"] or NAMES
print(json.dumps({name: planted(lazy, name).as_dict() for name in asked}))
