"""`python -m vitcore.recipes`: what `vitcore recipes` does."""

import sys

from vitcore.cli import run
from vitcore.recipes import main

sys.exit(run(main))
