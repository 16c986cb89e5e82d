"""The process in which one backend is tested: `python -m vitcore.testing.worker BACKEND [SEED] [--simulate] [--enable=KERNEL]`.

It reads names of checks from standard input and answers each with one line of JSON. What libraries print goes to standard
error, so that it cannot come between the answers.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from vitcore.errors import VitcoreError
from vitcore.testing.checks import CHECKS, Failure, NotApplicable
from vitcore.testing.process import REFUSED


def main(argv: Sequence[str]) -> int:
    """Serve checks; or be one rank, or one run, of a check."""
    name, *rest = (a for a in argv if not a.startswith("--") or a in ("--rank-of", "--fingerprint"))
    how: dict[str, Any] = {"simulate": "--simulate" in argv}
    how["enabled"] = [a.removeprefix("--enable=") for a in argv if a.startswith("--enable=")]
    if rest[:1] == ["--rank-of"]:
        try:
            subject = opened(name, int(rest[2]), **how)
        except VitcoreError as e:
            print(e, file=sys.stderr)
            return REFUSED
        from vitcore.testing.checks.ranks import run_rank

        run_rank(subject, Path(rest[1]))
        return 0
    if rest[:1] == ["--fingerprint"]:
        from vitcore.testing.checks.state import fingerprint

        print(fingerprint(opened(name, int(rest[1]), **how)))
        return 0
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _serve(name, int(rest[0]) if rest else 0, how, answers)
    return 0


def opened(name: str, seed: int, *, simulate: bool = False, enabled: Sequence[str] = ()) -> Any:
    from vitcore.plugins import load_plugins
    from vitcore.runtime.opening import open_backend, set_environment
    from vitcore.simulation import simulated

    plugins = load_plugins()
    backend = plugins.backend(name)
    backend = simulated(plugins, backend) if simulate else backend
    set_environment(backend, plugins)
    import torch

    torch.set_num_threads(1)
    open_backend(backend, plugins)
    from vitcore.testing.problem import subject

    return subject(name, seed, plugins, simulate=simulate, enabled=enabled)


def _serve(name: str, seed: int, how: dict[str, Any], answers: TextIO) -> None:
    try:
        subject = opened(name, seed, **how)
        answers.write(json.dumps({"ready": True}) + "\n")
    except VitcoreError as e:
        answers.write(json.dumps({"ready": False, "said": str(e)}) + "\n")
        return
    for line in sys.stdin:
        answers.write(json.dumps(answer(subject, line.strip())) + "\n")


def answer(subject: Any, check: str) -> dict[str, Any]:
    start = time.perf_counter()

    def came_to(outcome: str, said: str) -> dict[str, Any]:
        return {"check": check, "outcome": outcome, "said": said, "seconds": round(time.perf_counter() - start, 2)}

    try:
        return came_to("passed", CHECKS[check].run(subject))
    except NotApplicable as e:
        return came_to("not applicable", str(e))
    except Failure as e:
        return came_to("failed", str(e))
    except Exception as e:  # a stranger's kernels: whatever they raise is the finding
        traceback.print_exc()
        where = next((f"{f.name}, {Path(f.filename).name}:{f.lineno}" for f in reversed(traceback.extract_tb(e.__traceback__))
                      if not f.filename.startswith(os.path.dirname(sys.modules["torch"].__file__ or ""))), "")  # fmt: skip
        return came_to("failed", f"{type(e).__name__}: {(str(e).splitlines() or [''])[0]} ({where})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
