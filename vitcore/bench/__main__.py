"""`python -m vitcore.bench` is `vitcore bench`."""

import sys

from vitcore.bench.verb import main
from vitcore.cli import run

sys.exit(run(main))
