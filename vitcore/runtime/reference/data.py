"""Kernels of the host: reading batches, copying them to the device, splitting keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vitcore.model.patches import centred

if TYPE_CHECKING:
    from vitcore.data.batch import Batch
    from vitcore.data.feed import Feed
    from vitcore.runtime.runtime import Runtime


class Key(NamedTuple):
    """Counter-based randomness: what makes a draw fresh is (seed, stream, sample position), no generator's state."""

    seed: int
    stream: str = ""


class DeviceBatch(NamedTuple):
    """A batch on the device: images [B, C, H, W] f32 in [-1, 1] or bytes, labels [B] int64, weight [B] f32 (0: not an image).

    `positions` [B] stays on the host: the draws of a sample are made from (seed, position) there. `draws` are what
    `vitcore.data.draws` drew there for the augmentation on the device.
    """

    images: Tensor
    labels: Tensor
    weight: Tensor
    positions: Tensor
    draws: dict[str, Tensor] = {}  # noqa: RUF012  (never written; the default of a NamedTuple)


def next_batch(rt: Runtime, cursor: int, split: str = "train") -> tuple[Batch, int]:
    """The batch at `cursor` (a global sample position) and the cursor after it."""
    feed = _feed(rt)
    return feed.next_train(cursor) if split == "train" else feed.next_eval(cursor)


def peek(rt: Runtime, cursor: int) -> Batch:
    """The training batch at `cursor`, a global sample position."""
    return _feed(rt).next_train(cursor)[0]


def advance(rt: Runtime, cursor: int) -> int:
    """The cursor after the training batch at `cursor`."""
    return _feed(rt).after_train(cursor)


def _feed(rt: Runtime) -> Feed:
    assert rt.feed is not None, "a runtime without data cannot read a batch"
    return rt.feed


def put(rt: Runtime, batch: Batch, pixels: str = "", ahead: str = "") -> DeviceBatch:
    """Copy to the device; uint8 images become f32 in [-1, 1] there, so that a quarter of the bytes travel, or stay `bytes`.
    `ahead` says that the batch is of the next step, for kernels to which that matters."""
    images = batch.images.to(rt.device, non_blocking=True)
    if images.dtype == torch.uint8 and pixels != "bytes":
        images = centred(images)
    labels, weight = (t.to(rt.device, non_blocking=True) for t in (batch.labels, batch.weight))
    draws = {name: t.to(rt.device, non_blocking=True) for name, t in batch.draws.items()}
    return DeviceBatch(images, labels, weight, batch.positions, draws)


def split(rt: Runtime, key: Key, stream: str = "model") -> tuple[Key, Key]:
    """The key to carry on, and the key for the draws of `stream`."""
    return key, Key(key.seed, stream)
