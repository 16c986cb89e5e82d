"""A plan on an opened device: data, model, executable and state, for training and evaluation alike."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vitcore import checkpoint
from vitcore.config import Config
from vitcore.data.augment import Augment
from vitcore.data.datasets import Dataset, open_dataset
from vitcore.data.feed import Feed
from vitcore.errors import VitcoreError
from vitcore.model.variants import ARITHMETIC, Variant, find_variant
from vitcore.model.vit import build_model
from vitcore.plan import Plan
from vitcore.runtime.distributed import close_group, open_group
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.opening import open_backend
from vitcore.runtime.reference.optim import PER_PARAMETER
from vitcore.weights import own
from vitcore.weights.examine import Weights, check_type, examine
from vitcore.weights.load import empty_model, fill
from vitcore.weights.resolve import resolve


class Session:
    """Open what a plan needs; `close` gives everything back. Use as a context. `weights` are those to start from."""

    def __init__(self, plan: Plan, weights: Weights | None = None) -> None:
        config = plan.config
        self.plan, self.config, self.world = plan, config, plan.world
        self.weights = weights
        self.origin: str | None = None
        """Where the first parameters came from; None for those that were drawn, and after resuming what the checkpoint
        says."""
        self.dataset = open_data(config)
        open_backend(plan.backend, plan.plugins)
        if config.threads:
            torch.set_num_threads(config.threads)
        open_group(plan.backend, plan.world)
        self.feed = Feed(
            self.dataset, seed=config.seed, micro_batch=config.micro_batch,
            accumulation=config.gradient_accumulation_steps, world_size=plan.world.size, rank=plan.world.rank,
            augment=augmentation(config), eval_batch=config.eval_batch_size,
        )  # fmt: skip
        rates = {} if config.dropout is None else {"dropout": config.dropout}
        model = build_model(config.model_type, config.img_size, self.dataset.num_classes, **rates)
        model.class_names = tuple(self.dataset.class_names)
        self.about = own.facts(model)
        self.executable = Executable(plan.lowered, plan.backend, plan.kernels, model, self.feed, plan.world)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.executable.close()
        close_group()

    def start(self) -> tuple[State, list[str]]:
        """Fresh state, from pretrained weights where there are some, and what is to be said of those."""
        exe = self.executable
        state = exe.init(self.config.seed)
        if self.weights is None:
            return state, []
        variant = self.about["variant"]
        model = empty_model(Variant(**variant), self.config.img_size, self.dataset.num_classes)
        said = fill(model, self.weights, self.config.position_resampling, head=False)
        filled = dict(model.named_parameters())
        values = {**exe.saved(state), exe.params_name: tuple(filled[n].detach() for n in exe.rt.names)}
        differ = [f"{f} {getattr(self.weights.variant, f)!r} there, {variant[f]!r} here" for f in ARITHMETIC
                  if getattr(self.weights.variant, f) != variant[f]]  # fmt: skip
        if differ:
            said.append(f"{self.config.model_type} is not computed as where they come from: {', '.join(differ)}")
        self.origin = f"{self.weights.path} ({self.weights.layout})"
        return exe.restore(values), [f"weights of {self.origin}", *said, *self.weights.notes]

    @property
    def images_per_step(self) -> int:
        """Images of all ranks in one optimizer step."""
        return self.feed.global_batch

    @property
    def pixels_left_out(self) -> int:
        """Pixels at the right and the lower edge that make no whole patch, as in the original."""
        variant = find_variant(self.config.model_type)
        return self.config.img_size % variant.patch if variant.stages is None else 0

    @property
    def model_facts(self) -> str:
        """What a checkpoint says it is of."""
        c = self.config
        return f"{c.model_type} at {c.img_size} px, {self.dataset.num_classes} classes, {c.optimizer}"

    def save(self, state: State, path: Path, facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the state; on ranks other than 0 nothing is written."""
        if self.world.rank:
            return path
        exe = self.executable
        kinds = {v.name: v.ty.kind for v in exe.module.saved}
        tensors, values = checkpoint.flatten(exe.saved(state), kinds, exe.rt.names)
        about = {"model": self.model_facts, own.KEY: self.about, "fingerprint": exe.fingerprint, "weights": self.origin}
        return checkpoint.save(path, tensors, values, {**about, "config": self.config.as_dict(), **facts})

    def load(self, path: Path) -> tuple[State, checkpoint.Checkpoint]:
        """The state of a checkpoint, on the device; what is derived is rebuilt."""
        exe, found = self.executable, checkpoint.load(path)
        each = dict.fromkeys(PER_PARAMETER[self.config.optimizer], True)
        slots = {**each, "step": False} if self.config.optimizer == "adamw" else each
        shapes = [t.shape for t in exe.rt.own_params()]
        self.origin = found.facts.get("weights")
        saved = checkpoint.unflatten(found, exe.module.saved, exe.rt.names, shapes, slots, exe.rt.device)
        return exe.restore(saved), found

    def evaluate(self, state: State) -> tuple[State, dict[str, float]]:
        """Every evaluation image exactly once over all ranks; the state's metrics are fresh before and after."""
        state = self.executable.eval(state, self.feed.eval_steps)
        state, report = self.executable.log(state)
        return state, eval_report(report, len(self.dataset.eval))


def eval_report(report: Mapping[str, float], expected: int) -> dict[str, float]:
    """Accuracy in percent, right answers, images and mean loss from the accumulators."""
    total = round(report["eval_total"])
    if total == 0:
        raise VitcoreError(
            f"evaluation: none of {expected} images could be read; check the files of the evaluation split"
        )
    correct, correct5 = round(report["eval_correct"]), round(report["eval_correct5"])
    percent = {"accuracy": 100 * correct / total, "top5": 100 * correct5 / total}
    return {**percent, "correct": correct, "total": total, "loss": report["eval_loss"] / total}


def open_pretrained(config: Config) -> Weights | None:
    """The weights to start from, found to be the model's; None for a run that draws its own or goes on."""
    if config.pretrained_dir is None or config.resume is not None:
        return None
    try:
        weights = examine(resolve(config.pretrained_dir))
        check_type(weights, config.model_type)
    except VitcoreError as e:
        raise VitcoreError(f"--pretrained_dir {config.pretrained_dir}: {e}") from e
    return weights


def open_data(config: Config) -> Dataset:
    """The data set as the model takes it; unreadable images are named as they are met."""
    logging.basicConfig(format="vitcore: %(message)s")
    return open_dataset(
        config.dataset, img_size=config.img_size, channels=find_variant(config.model_type).channels,
        data_path=config.data_path, workers=config.workers, bad_images=config.bad_images,
    )  # fmt: skip


def augmentation(config: Config) -> Augment | None:
    """What training does to an image, or None for nothing."""
    chosen = Augment(
        rotate=config.augment_rotate, scale=config.augment_scale, shear=config.augment_shear,
        translate=config.augment_translate, gain=config.augment_gain,
        flip=config.augment_flip, crop=config.augment_crop,
    )  # fmt: skip
    return None if asdict(chosen) == asdict(Augment()) else chosen
