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
from vitcore.saved import saved_config
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
    precision: Literal["fp32", "tf32", "bf16", "bf16-casts"] | None = None
    """Precision of the model's arithmetic."""
    dataset: str | None = None
    """Data set; a file of weights needs it."""
    data_path: str | None = None
    """Folder of the data set."""
    img_size: int | None = None
    """Side in pixels to which images are resized, for a file of weights; unset: its own."""
    eval_batch_size: int | None = None
    """Images per process and batch."""
    eval_resize: Literal["squash", "crop"] | None = None
    """How an image is fitted: squash stretches all of it, as the original; crop keeps the aspect and the centre."""
    eval_crop_pct: float | None = None
    """With eval_resize crop: the model's side as a share of the resized image's shorter side."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """How images are resized; always antialiased."""
    bad_images: Literal["skip", "stop"] | None = None
    """What an unreadable image does: ends the evaluation, or is left out of all counts and named."""
    workers: int | Literal["auto"] | None = None
    """Workers that decode images."""
    report: str | None = None
    """Folder for a report by class and by confidence: report.json, confusion.csv, per_class.csv, and plots with matplotlib."""
    json: bool = False
    """Print one JSON object as the last line of standard output."""


def main(argv: Sequence[str]) -> int:
    """Print accuracy and loss."""
    asked = parse(Evaluate, argv, "vitcore evaluate", __doc__ or "")
    # Here and not at the top: --help needs no compiler.
    from vitcore.plan import make_plan
    from vitcore.reporting.files import prepare, write
    from vitcore.reporting.lines import lines
    from vitcore.reporting.numbers import Details, check_classes, scores

    config = _config(asked)
    if asked.report is not None:
        prepare(Path(asked.report))
    plan = make_plan(config, details=asked.report is not None)
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
        if asked.report is not None:
            check_classes(session.dataset.num_classes)
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
        _, counted = session.count(state)
        values = scores(counted, len(session.dataset.eval))
        bad, names = len(session.dataset.eval) - int(values["total"]), session.dataset.class_names
    result = {**values, "backend": plan.backend.title, **result, "bad_images": bad}
    if plan.world.rank == 0:
        if bad:
            say(f"{bad} image file(s) could not be read and were left out")
        shown = [
            f"accuracy {values['accuracy']:.2f} % ({values['correct']} of {values['total']}), top-5 "
            f"{values['top5']:.2f} %, loss {values['loss']:.4f}; {result['checkpoint']} on {plan.backend.title}"
        ]
        if asked.report is not None:
            details = Details.of(counted, names)
            shown += lines(details)
            _wrote(asked.report, write(Path(asked.report), {**result, **_fitted(plan.config)}, details))
            means = {"mean_class_accuracy": details.mean_class_accuracy, "calibration_error": details.calibration_error}
            result |= {**means, "report": asked.report}
        print(json.dumps(result) if asked.json else "\n".join(shown), flush=True)
    return 0


def _fitted(config: Config) -> dict[str, Any]:
    """On what was evaluated, and how its images were fitted."""
    names = ("dataset", "data_path", "img_size", "eval_resize", "eval_crop_pct", "interpolation", "precision")
    return {name: getattr(config, name) for name in names}


def _wrote(folder: str, names: Sequence[str]) -> None:
    say(f"report in {folder}: {', '.join(names)}")
    if not any(name.endswith(".png") for name in names):
        say("no plots, as matplotlib is not installed; pip install matplotlib")


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


_ASKED = ("backend", "precision", "dataset", "data_path", "eval_batch_size", "workers", "eval_resize", "eval_crop_pct",
          "interpolation", "bad_images")  # fmt: skip


def _config(asked: Evaluate) -> Config:
    """The checkpoint's own configuration with what was asked for in its place; read without torch. Of a file of weights,
    the configuration that starts from it."""
    path = Path(asked.checkpoint)
    changes = {n: getattr(asked, n) for n in _ASKED if getattr(asked, n) is not None}
    config = saved_config(path)
    if config is None:
        weights = resolve(asked.checkpoint)
        if asked.dataset is None:
            raise VitcoreError(f"{weights}: a file of weights does not say on what to evaluate it; give --dataset, and "
                               "--data_path where it is a folder")  # fmt: skip
        return Config(**changes, model_type=None, pretrained_dir=str(weights))
    if asked.img_size is not None:
        raise VitcoreError(f"checkpoint {path}: --img_size is for files of weights; a run is evaluated at its own size")
    # What belongs to the device that it was trained on stays behind.
    here: dict[str, Any] = {"simulate": asked.simulate, "disable_kernel": (), "enable_kernel": (), "env": ()}
    return replace(config, **{**here, **changes}, resume=asked.checkpoint, pretrained_dir=None)


if __name__ == "__main__":
    sys.exit(run(main))
