"""Kernels of the host: reading batches, copying them to the device, splitting keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.data.batch import Batch
    from vitcore.runtime.runtime import Runtime


class Key(NamedTuple):
    """Counter-based randomness: what makes a draw fresh is (seed, stream, sample position), no generator's state."""

    seed: int
    stream: str = ""


class DeviceBatch(NamedTuple):
    """A batch on the device: images [B, C, H, W] f32 in [-1, 1], labels [B] int64, weight [B] f32 (0: not an image).

    `positions` [B] stays on the host: the draws of a sample are made from (seed, position) there.
    """

    images: Tensor
    labels: Tensor
    weight: Tensor
    positions: Tensor


def next_batch(rt: Runtime, cursor: int, split: str = "train") -> tuple[Batch, int]:
    """The batch at `cursor` (a global sample position) and the cursor after it."""
    assert rt.feed is not None, "a runtime without data cannot read a batch"
    return rt.feed.next_train(cursor) if split == "train" else rt.feed.next_eval(cursor)


def put(rt: Runtime, batch: Batch) -> DeviceBatch:
    """Copy to the device; uint8 images become f32 in [-1, 1] there, so that a quarter of the bytes travel."""
    images = batch.images.to(rt.device, non_blocking=True)
    if images.dtype == torch.uint8:
        images = images.to(torch.float32) / 127.5 - 1
    labels = batch.labels.to(rt.device, non_blocking=True)
    return DeviceBatch(images, labels, batch.weight.to(rt.device, non_blocking=True), batch.positions)


def split(rt: Runtime, key: Key, stream: str = "model") -> tuple[Key, Key]:
    """The key to carry on, and the key for the draws of `stream`."""
    return key, Key(key.seed, stream)
