"""Every planted mistake on one backend, in one process: the reports as JSON, by name. `BACKEND [--simulate]`."""

import json
import sys
from pathlib import Path

from vitcore.testing.worker import opened

lazy = opened(sys.argv[1], 0, simulate="--simulate" in sys.argv)
sys.path.insert(0, str(Path(__file__).parent))

from faults import NAMES, planted  # noqa: E402

print(json.dumps({name: planted(lazy, name).as_dict() for name in NAMES}))
