"""`python -m vitcore.data` is `vitcore data`."""

import sys

from vitcore.cli import run
from vitcore.data.verb import main

sys.exit(run(main))
