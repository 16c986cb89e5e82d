"""A plan on an opened device: data, model, executable and state, for training and evaluation alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitcore import checkpoint
from vitcore.config import Config
from vitcore.data.datasets import Dataset, open_dataset
from vitcore.data.feed import Feed
from vitcore.doctor.fitting import free_memory
from vitcore.errors import VitcoreError
from vitcore.model.vit import VisionTransformer
from vitcore.origin import Origin
from vitcore.plan import Plan
from vitcore.reporting.numbers import scores
from vitcore.runtime.distributed import close_group, open_group
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.opening import open_backend, place_threads
from vitcore.runtime.reference.optim import slots
from vitcore.weights import own
from vitcore.weights.load import empty_model, fill


class Session:
    """Open what a plan needs, for the model of `origin`; `close` gives everything back. Use as a context."""

    def __init__(self, plan: Plan, origin: Origin) -> None:
        config = plan.config
        self.plan, self.config, self.world, self.origin = plan, config, plan.world, origin
        self.variant = origin.variant
        self.simulator = plan.backend.simulator
        self.started_from: str | None = None
        """Where the first parameters came from; None for those that were drawn, and after resuming what the checkpoint
        says."""
        self.dataset = open_data(config, origin)
        held = origin.weights.found.num_classes if origin.weights and origin.keep_head else self.dataset.num_classes
        if held != self.dataset.num_classes:
            raise VitcoreError(f"the weights have {held} classes, {self.dataset.name} has {self.dataset.num_classes}; choose "
                               "a data set of the classes that they were trained on")  # fmt: skip
        open_backend(plan.backend, plan.plugins)
        self.free = free_memory(plan.backend)
        """Bytes that were free before anything of this run was on the device; None where that is not known."""
        self.placed = place_threads(plan.backend, config.threads)
        """What is to be said of the threads; "" where there is nothing."""
        self._joined = open_group(plan.backend, plan.world)
        self.feed = Feed(
            self.dataset, seed=config.seed, micro_batch=config.micro_batch,
            accumulation=config.gradient_accumulation_steps, world_size=plan.world.size, rank=plan.world.rank,
            augment=config.augmentation, eval_batch=config.eval_batch_size, pin=plan.backend.pinned,
            tokens=math.prod(self.variant.grid(config.img_size, config.img_size)),
        )  # fmt: skip
        model = VisionTransformer(self.variant, config.img_size, self.dataset.num_classes)
        model.class_names = tuple(self.dataset.class_names)
        self.about = own.facts(model)
        self.executable = Executable(plan.lowered, plan.backend, plan.kernels, model, self.feed, plan.world)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.executable.close()
        if self._joined:
            close_group()

    def start(self) -> tuple[State, list[str]]:
        """Fresh state, filled from weights where the origin has some, and what is to be said of those."""
        exe, weights = self.executable, self.origin.weights
        state = exe.init(self.config.seed)
        if weights is None:
            return state, []
        saved = exe.saved(state)
        model = empty_model(self.variant, self.config.img_size, self.dataset.num_classes)
        filled = dict(model.named_parameters())
        held = {piece.parameter for piece in weights.pieces}
        with torch.no_grad():
            for name, drawn in zip(exe.rt.names, saved[exe.params_name], strict=True):
                if name not in held:
                    filled[name].copy_(drawn)
        said = fill(model, weights, self.config.position_resampling, head=self.origin.keep_head)
        values = dict(saved)
        for v in exe.module.saved:
            if v.ty.kind in ("params", "ema"):  # an average begins at the parameters
                values[v.name] = tuple(filled[n].detach().to(exe.rt.device, copy=True) for n in exe.rt.names)
        self.started_from = f"{weights.path} ({weights.layout})"
        computed = f"computed with {self.variant.arithmetic}"
        return exe.restore(values), [f"weights of {self.started_from}, {computed}", *said, *weights.notes]

    @property
    def images_per_step(self) -> int:
        """Images of all ranks in one optimizer step."""
        return self.feed.global_batch

    @property
    def pixels_left_out(self) -> int:
        """Pixels at the right and the lower edge that make no whole patch, as in the original."""
        return self.config.img_size % self.variant.patch if self.variant.stages is None else 0

    @property
    def model_facts(self) -> str:
        """What a checkpoint says it is of."""
        c = self.config
        return f"{self.variant.name} at {c.img_size} px, {self.dataset.num_classes} classes, {c.optimizer}"

    def save(self, state: State, path: Path, facts: Mapping[str, Any]) -> Path:
        """Write a checkpoint of the state; on ranks other than 0 nothing is written."""
        if self.world.rank:
            return path
        exe = self.executable
        kinds = {v.name: v.ty.kind for v in exe.module.saved}
        tensors, values = checkpoint.flatten(exe.saved(state), kinds, exe.rt.names)
        about = {
            "model": self.model_facts,
            own.KEY: self.about,
            "fingerprint": exe.fingerprint,
            "weights": self.started_from,
            "measured": {"backend": self.plan.backend.name, "slower": [*self.plan.slower]},
            **({"simulated": self.simulator.name} if self.simulator else {}),
        }
        return checkpoint.save(path, tensors, values, {**about, "config": self.config.as_dict(), **facts})

    def load(self, path: Path) -> tuple[State, checkpoint.Checkpoint]:
        """The state of a checkpoint, on the device; what is derived is rebuilt."""
        exe, found = self.executable, checkpoint.load(path)
        shapes = [t.shape for t in exe.rt.own_params()]
        self.started_from = found.facts.get("weights")
        saved = checkpoint.unflatten(found, exe.module.saved, exe.rt.names, shapes, slots(exe.rt.groups), exe.rt.device)
        return exe.restore(saved), found

    def evaluate(self, state: State) -> tuple[State, dict[str, float]]:
        """Accuracy and loss; every evaluation image exactly once over all ranks. The state's metrics are fresh before and
        after."""
        state, report = self.count(state)
        return state, scores(report, len(self.dataset.eval))

    def count(self, state: State) -> tuple[State, dict[str, Any]]:
        """The accumulators of an evaluation, summed over all ranks."""
        return self.executable.log(self.executable.eval(state, self.feed.eval_steps))


def open_data(config: Config, origin: Origin) -> Dataset:
    """The data set as the model takes it; unreadable images are named as they are met."""
    logging.basicConfig(format="vitcore: %(message)s")
    return open_dataset(
        config.dataset, img_size=config.img_size, channels=origin.variant.channels,
        data_path=config.data_path, download=config.download, workers=config.workers, loader=config.loader,
        bad_images=config.bad_images, interpolation=config.interpolation, eval_resize=config.eval_resize,
        eval_crop_pct=config.eval_crop_pct,
    )  # fmt: skip
