"""`python -m vitcore` is the `vitcore` command."""

import sys

from vitcore.cli import main

sys.exit(main())
