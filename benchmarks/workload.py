"""What is measured: a model, a batch and how it is trained, the same for whoever carries it out.

Pictures are random and wait in memory, so that reading is in nobody's time. The head is drawn too, where training begins with
zeros: else the first losses of all would be equal for no reason of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vitcore.config import Config
from vitcore.model.variants import Variant, find_variant
from vitcore.model.work import step_operations

SEED, BATCHES, RATE = 0, 2, 1e-3


@dataclass(frozen=True)
class Workload:
    """One training job. No dropout, no weight decay, no clipping: what every loop does by itself, in one optimizer step of
    `batch` pictures."""

    model: str
    img_size: int
    batch: int
    precision: str = "fp32"
    classes: int = 1000
    optimizer: str = "sgdm"
    accumulation: int = 1
    gelu: str = "tanh"
    pixels: str = "float"
    """`float` in [-1, 1], or `bytes`, which each loop makes into such numbers itself."""
    place: str = "device"
    """Where the batches wait: on the `device`, or on the `host`, so that each loop brings them over itself."""
    depth: int = 0
    """Of the model, where it is not the variant's own."""
    width: int = 0
    """Of the model, with as many heads and as wide a middle in proportion."""

    @cached_property
    def variant(self) -> Variant:
        """The model's sizes."""
        variant = find_variant(self.model).replace(dropout=0.0, attention_dropout=0.0, gelu=self.gelu)
        if self.depth:
            variant = variant.replace(depth=self.depth)
        if self.width:
            heads, mlp = (n * self.width // variant.width for n in (variant.heads, variant.mlp))
            variant = variant.replace(width=self.width, heads=heads, mlp=mlp)
        return variant

    @property
    def operations(self) -> int:
        """Nominal operations of a step."""
        return step_operations(self.variant, self.img_size, self.classes, self.batch)

    def config(self, backend: str, **more: Any) -> Config:
        """The settings of vitcore with which it does this job."""
        settings: dict[str, Any] = {
            "dataset": "synthetic", "model_type": self.model, "img_size": self.img_size, "dropout": 0.0,
            "train_batch_size": self.batch, "gradient_accumulation_steps": self.accumulation, "optimizer": self.optimizer,
            "learning_rate": RATE, "max_grad_norm": 0.0, "precision": self.precision, "backend": backend,
            "recipe": "benchmark", "seed": SEED,
        }  # fmt: skip
        return Config(**{**settings, **more})


def weights(job: Workload) -> Any:
    """The job's model with its first parameters, on the host."""
    import torch

    from vitcore.model.init import init_parameters
    from vitcore.model.vit import VisionTransformer

    model = VisionTransformer(job.variant, job.img_size, job.classes)
    generator = torch.Generator().manual_seed(SEED)
    init_parameters(model, generator)
    assert model.head is not None
    torch.nn.init.normal_(model.head.weight, std=0.02, generator=generator)
    return model


def batches(job: Workload, device: Any, *, pinned: bool = False) -> list[Any]:
    """A few batches of one micro-step each, taken in turn; `positions` stay on the host, as a feed's do."""
    import torch

    from vitcore.data.batch import Batch

    generator = torch.Generator().manual_seed(SEED + 1)
    rows, made = job.batch // job.accumulation, []
    shape = (rows, job.variant.channels, job.img_size, job.img_size)
    for number in range(BATCHES):
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if job.pixels == "float":
            images = images.float() / 127.5 - 1
        labels = torch.randint(0, job.classes, (rows,), generator=generator)
        tensors = [images, labels, torch.ones(rows)]
        if job.place == "device":
            tensors = [t.to(device) for t in tensors]
        elif pinned:
            tensors = [t.pin_memory() for t in tensors]
        made.append(Batch(*tensors, torch.arange(number * rows, (number + 1) * rows)))
    return made
