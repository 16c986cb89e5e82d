"""`python -m vitcore.evaluate`: evaluate a checkpoint on its data set's evaluation images, each exactly once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vitcore.cli import run
from vitcore.commandline import parse, say
from vitcore.config import Config
from vitcore.errors import VitcoreError


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of an evaluation; what is unset is as the checkpoint's run had it."""

    checkpoint: str
    """Checkpoint, or run folder whose newest checkpoint is taken."""
    backend: str = "auto"
    """Backend, or auto for the best that can run here."""
    precision: Literal["fp32", "bf16"] | None = None
    """Precision of the model's arithmetic."""
    dataset: str | None = None
    """Data set."""
    data_path: str | None = None
    """Folder of the data set."""
    eval_batch_size: int | None = None
    """Images per process and batch."""
    workers: int | None = None
    """Threads that decode images."""
    json: bool = False
    """Print one JSON object as the last line of standard output."""


def main(argv: Sequence[str]) -> int:
    """Print accuracy and loss."""
    asked = parse(Evaluate, argv, "vitcore evaluate", __doc__ or "")
    # Here and not at the top: --help needs no compiler.
    from vitcore.plan import make_plan

    plan = make_plan(_config(asked))
    for line in plan.plugins.complaints:
        say(line)
    from vitcore.runtime.opening import set_environment

    set_environment(plan.backend, plan.plugins)
    from vitcore.session import Session

    with Session(plan) as session:
        state, found = session.load(Path(asked.checkpoint))
        state, _ = session.executable.log(state)  # the run's own metrics are not the evaluation's
        _, values = session.evaluate(state)
        bad = session.feed.bad_images
    result = {**values, "backend": plan.backend.name, "checkpoint": str(found.path), "steps": found.facts["step"]}
    if plan.world.rank == 0:
        if bad:
            say(f"{bad} image file(s) could not be read and were left out")
        if asked.json:
            print(json.dumps({**result, "bad_images": bad}), flush=True)
        else:
            print(
                f"accuracy {values['accuracy']:.2f} % ({values['correct']} of {values['total']}), top-5 "
                f"{values['top5']:.2f} %, loss {values['loss']:.4f}; {found.path} on {plan.backend.name}"
            )
    return 0


def _config(asked: Evaluate) -> Config:
    """The checkpoint's own configuration with what was asked for in its place; read without torch."""
    path = Path(asked.checkpoint)
    candidates = [path / "state.json", *sorted(path.glob("checkpoints/step-*/state.json"), reverse=True)]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        raise VitcoreError(f"checkpoint {path}: no such checkpoint or run folder; give a folder that holds state.json")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["facts"]["config"]
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        config = Config(**lists)
    except (ValueError, KeyError, TypeError) as e:
        raise VitcoreError(f"checkpoint {path}: {file.name} holds no configuration ({type(e).__name__}: {e}); it is "
                           "corrupt or of another version") from e  # fmt: skip
    names = ("backend", "precision", "dataset", "data_path", "eval_batch_size", "workers")
    changes = {n: getattr(asked, n) for n in names if getattr(asked, n) is not None}
    return replace(config, **changes, resume=None, pretrained_dir=None)


if __name__ == "__main__":
    sys.exit(run(main))
