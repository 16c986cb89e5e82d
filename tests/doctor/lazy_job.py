"""Every planted mistake on lazysim, in one process: the reports as JSON, by name."""

import json
import sys
from pathlib import Path

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)
sys.path.insert(0, str(Path(__file__).parent))

from faults import NAMES, planted  # noqa: E402

print(json.dumps({name: planted(lazy, name).as_dict() for name in (sys.argv[1:] or NAMES)}))
