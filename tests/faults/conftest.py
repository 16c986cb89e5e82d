"""Puts the helpers of tests/backend within reach, and the guards on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "backend"))

from rig import guarded  # noqa: F401
