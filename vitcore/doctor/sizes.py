"""The sizes that estimates are made of: the model's, without a parameter of it in memory, and the batch's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import numpy as np

from vitcore.config import Config
from vitcore.data.feed import Feed
from vitcore.errors import VitcoreError
from vitcore.model.shapes import parameter_shapes
from vitcore.model.variants import Variant
from vitcore.model.work import ASSUMED_CLASSES
from vitcore.origin import find_origin
from vitcore.plan import Plan
from vitcore.runtime.executable import Executable
from vitcore.runtime.reference.optim import slots
from vitcore.runtime.runtime import bind_groups
from vitcore.step.ir import Module


@dataclass(frozen=True)
class Sizes:
    """`assumed` says what could not be known here and was assumed; "" where everything is known."""

    variant: Variant
    side: tuple[int, int]
    classes: int
    micro_batch: int
    eval_batch: int
    pixel_bytes: int
    """Of a pixel as it is copied: 1 where bytes are, which become numbers on the device."""
    assumed: str = ""

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by name."""
        return parameter_shapes(self.variant, prod(self.variant.grid(*self.side)), self.classes)

    @property
    def pixels(self) -> int:
        """Numbers of one picture."""
        return self.variant.channels * self.side[0] * self.side[1]

    @property
    def draws(self) -> bool:
        """Whether the training forward takes a key for each sample."""
        return self.variant.dropout > 0 or self.variant.attention_dropout > 0

    def batch_bytes(self, rows: int, *, keys: bool = False) -> int:
        """Bytes of a batch as it is copied: pictures, labels (int64) and weights (f32), and keys (int32) where asked."""
        return rows * (self.pixels * self.pixel_bytes + 8 + 4 + (4 if keys else 0))


def trained_of(module: Module, sizes: Sizes) -> list[bool]:
    """Of each parameter, whether the module trains it."""
    groups = bind_groups(module.groups, [*sizes.shapes], module.attrs["optimizer"])
    trained = frozenset(i for group in groups for i in group.indices)
    return [i in trained for i in range(len(sizes.shapes))]


def state_bytes(module: Module, sizes: Sizes) -> tuple[int, int]:
    """Bytes of one bundle of gradients and of the optimizer's slots, of what the module does not freeze."""
    numbers = [prod(shape) for shape in sizes.shapes.values()]
    groups = bind_groups(module.groups, [*sizes.shapes], module.attrs["optimizer"])
    kept = sum(numbers[i] for where in slots(groups).values() for i in where or ())
    return 4 * sum(n for n, yes in zip(numbers, trained_of(module, sizes), strict=True) if yes), 4 * kept


def sizes_of_executable(exe: Executable) -> Sizes:
    """Of a model and a feed at hand."""
    feed, model = exe.rt.feed, exe.rt.model
    if feed is None:
        raise VitcoreError("an executable without a feed has no batches to speak of; give it one")
    return Sizes(
        model.variant, model.img_size, model.num_classes, feed.micro_batch, feed.eval_batch, _pixel_bytes(feed)
    )


def sizes_of_config(config: Config, variant: Variant, classes: int = ASSUMED_CLASSES) -> Sizes:
    """Of settings, without a look at the data: its pixels are taken to come as bytes."""
    side = (config.img_size, config.img_size)
    return Sizes(variant, side, classes, config.micro_batch, config.eval_batch_size, 1)


def sizes_of_plan(plan: Plan) -> Sizes:
    """Of a recipe. Where its weights or its data set are not here, the model's type, the number of classes and the type of
    pixels are assumed, and it is said."""
    from vitcore.session import open_data

    config = plan.config
    classes, pixel, assumed = ASSUMED_CLASSES, 1, list[str]()
    try:
        origin = find_origin(config)
    except VitcoreError as e:
        if config.model_type is None:
            raise
        origin = find_origin(replace(config, pretrained_dir=None, resume=None))
        assumed.append(f"{config.model_type} is assumed: {e}")
    try:
        dataset = open_data(replace(config, workers=0), origin)  # one picture is looked at
        feed = Feed(dataset, seed=config.seed, micro_batch=config.micro_batch, augment=config.augmentation)
        classes, pixel = dataset.num_classes, _pixel_bytes(feed)
        feed.close()
    except VitcoreError as e:
        assumed.append(f"{ASSUMED_CLASSES} classes and pixels of one byte are assumed: {e}")
    side = (config.img_size, config.img_size)
    return Sizes(origin.variant, side, classes, config.micro_batch, config.eval_batch_size, pixel, "; ".join(assumed))


def _pixel_bytes(feed: Feed) -> int:
    one = np.zeros(1, dtype=np.int64)
    images, *_ = feed.dataset.train.load(one, one, feed.seed, feed.augment)
    return images.element_size()
