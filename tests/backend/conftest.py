"""Puts the helpers of this folder within reach, and the guards on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from rig import guarded  # noqa: F401
