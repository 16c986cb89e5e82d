"""`python -m vitcore.evaluate`: evaluate a checkpoint on its data set's evaluation images, or a file of weights on one
that is named, each image exactly once."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitcore.cli import run
from vitcore.commandline import parse, say
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.weights.resolve import resolve

if TYPE_CHECKING:
    from vitcore.origin import Origin
    from vitcore.plan import Plan
    from vitcore.weights.examine import Weights


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Settings of an evaluation; what is unset is as the checkpoint's run had it."""

    checkpoint: str
    """Checkpoint, run folder whose newest checkpoint is taken, file of weights, official name or hub id."""
    backend: str = "auto"
    """Backend, or auto for the best that can run here."""
    simulate: bool = False
    """Use the installed simulator of the backend's device."""
    precision: Literal["fp32", "bf16", "bf16-casts"] | None = None
    """Precision of the model's arithmetic."""
    dataset: str | None = None
    """Data set; a file of weights needs it."""
    data_path: str | None = None
    """Folder of the data set."""
    img_size: int | None = None
    """Side in pixels to which images are resized, for a file of weights; unset: its own."""
    eval_batch_size: int | None = None
    """Images per process and batch."""
    workers: int | Literal["auto"] | None = None
    """Workers that decode images."""
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
    from vitcore.origin import find_origin
    from vitcore.session import Session

    origin = find_origin(plan.config)
    if origin.weights is not None:
        plan, origin = _of_weights(plan, origin.weights, asked.img_size)
    with Session(plan, origin) as session:
        result: dict[str, Any]
        if origin.weights is None:
            state, found = session.load(Path(asked.checkpoint))
            state, _ = session.executable.log(state)  # the run's own metrics are not the evaluation's
            result = {"checkpoint": str(found.path), "steps": found.facts["step"]}
        else:
            state, said = session.start()
            result = {"checkpoint": str(origin.weights.path), "steps": None}
            for line in said if plan.world.rank == 0 else ():
                say(line)
        _, values = session.evaluate(state)
        bad = session.feed.bad_images
    result = {**values, "backend": plan.backend.title, **result}
    if plan.world.rank == 0:
        if bad:
            say(f"{bad} image file(s) could not be read and were left out")
        if asked.json:
            print(json.dumps({**result, "bad_images": bad}), flush=True)
        else:
            print(
                f"accuracy {values['accuracy']:.2f} % ({values['correct']} of {values['total']}), top-5 "
                f"{values['top5']:.2f} %, loss {values['loss']:.4f}; {result['checkpoint']} on {plan.backend.title}"
            )
    return 0


def _of_weights(plan: Plan, weights: Weights, img_size: int | None) -> tuple[Plan, Origin]:
    """The plan at the weights' own size, or the one asked for, and the weights with their own head."""
    from vitcore.origin import Origin

    if not weights.found.num_classes or weights.head_is_zero():
        what = "no head" if not weights.found.num_classes else "a head of zeros, made to be replaced"
        raise VitcoreError(f"{weights.path}: the model has {what}, so it predicts no classes; pass a fine-tuned one")
    rows, columns = weights.img_size or (0, 0)
    if img_size is None and (rows != columns or not rows):
        takes = f"it takes pictures of {rows}x{columns} pixels" if rows else "its file does not say which size it takes"
        raise VitcoreError(f"{weights.path}: {takes}, and evaluation makes square ones; give --img_size")
    config = replace(plan.config, img_size=img_size or rows)
    return replace(plan, config=config), Origin(weights.variant, weights, keep_head=True)


_ASKED = ("backend", "precision", "dataset", "data_path", "eval_batch_size", "workers")


def _config(asked: Evaluate) -> Config:
    """The checkpoint's own configuration with what was asked for in its place; read without torch. Of a file of weights,
    the configuration that starts from it."""
    path = Path(asked.checkpoint)
    changes = {n: getattr(asked, n) for n in _ASKED if getattr(asked, n) is not None}
    candidates = [path / "state.json", *sorted(path.glob("checkpoints/step-*/state.json"), reverse=True)]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None and (path / "checkpoints").is_dir():
        raise VitcoreError(f"run folder {path}: it holds no complete checkpoint; evaluate another run")
    if file is None:
        weights = resolve(asked.checkpoint)
        if asked.dataset is None:
            raise VitcoreError(f"{weights}: a file of weights does not say on what to evaluate it; give --dataset, and "
                               "--data_path where it is a folder")  # fmt: skip
        return Config(**changes, model_type=None, pretrained_dir=str(weights))
    if asked.img_size is not None:
        raise VitcoreError(f"checkpoint {path}: --img_size is for files of weights; a run is evaluated at its own size")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))["facts"]["config"]
        lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        config = Config(**lists)
    except (ValueError, KeyError, TypeError) as e:
        raise VitcoreError(f"checkpoint {path}: {file.name} holds no configuration ({type(e).__name__}: {e}); it is "
                           "corrupt or of another version") from e  # fmt: skip
    # What belongs to the device that it was trained on stays behind.
    here: dict[str, Any] = {"simulate": asked.simulate, "disable_kernel": (), "enable_kernel": (), "env": ()}
    return replace(config, **{**here, **changes}, resume=asked.checkpoint, pretrained_dir=None)


if __name__ == "__main__":
    sys.exit(run(main))
