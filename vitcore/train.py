"""`python -m vitcore.train`: train a Vision Transformer on the best device present, or the one that is named."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence

from vitcore.cli import run
from vitcore.commandline import resolve_config, say
from vitcore.runtime.distributed import world_from_env
from vitcore.started import process_start


def main(argv: Sequence[str]) -> int:
    """Train, or print what was asked for and leave. Exit codes: 0 done, 2 refused, 128 + n stopped by signal n."""
    resolved = resolve_config(argv, "vitcore train", __doc__ or "")
    config = resolved.config
    for line in resolved.notes if world_from_env().rank == 0 else ():
        say(line)
    if config.dry_run:
        print(json.dumps(config.as_dict(), indent=1))
        return 0
    # Here and not at the top: --help and --dry-run need no compiler.
    from vitcore import stages

    if config.print_step or config.explain:
        comment = "#" if config.print_step == "python" and not config.explain else "//"
        for title, plan in stages.plans(config):
            shown = plan.explain() if config.explain else plan.show(config.print_step or "text")
            print(f"{comment} {title}\n{shown}" if title else shown)
        return 0
    result = stages.run(config, say=say, began=process_start())
    from vitcore.training import result_dict

    if world_from_env().rank == 0:
        if config.json:
            print(json.dumps(result_dict(result)), flush=True)
        elif result.total:
            print(
                f"accuracy {result.accuracy:.2f} % ({result.correct} of {result.total}) after {result.steps} steps, "
                f"{result.train_seconds:.1f} s of training, {result.images_per_second:.0f} images/s on "
                f"{result.backend}; checkpoint {result.checkpoint}"
            )
    if result.interrupted_by is not None:
        say(f"stopped by {signal.Signals(result.interrupted_by).name} after saving")
        return 128 + result.interrupted_by
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
