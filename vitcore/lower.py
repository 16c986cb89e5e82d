"""`python -m vitcore.lower`: print a recipe's step for any backend, on any machine, without torch or a device."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vitcore.cli import run
from vitcore.commandline import resolve_config, say
from vitcore.plan import make_plan


def main(argv: Sequence[str]) -> int:
    """Print the lowered programs; `--print-step` chooses text, lowered or python, `--explain` the passes and claims."""
    resolved = resolve_config(argv, "vitcore lower", __doc__ or "")
    for line in resolved.notes:
        say(line)
    config = resolved.config
    plan = make_plan(config, to_run=False)
    if config.explain:
        print(plan.explain() + "\n")
    print(plan.show(config.print_step or "lowered"))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
