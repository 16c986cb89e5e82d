"""Batches in pinned memory: host memory that stays in its place, so that a device can copy from it while it computes."""

import torch

from vitcore.data.batch import Batch


class Pinning:
    """Copies batches into pinned memory, from any thread; torch keeps that memory until copies from it are done.

    It is made in the thread that has chosen its device. A new thread would else choose the first one, and every rank hold
    memory there.
    """

    def __init__(self) -> None:
        self._device = torch.accelerator.current_device_index()

    def pin(self, batch: Batch) -> Batch:
        """The batch, pinned but for the positions, which stay on the host."""
        torch.accelerator.set_device_index(self._device)
        images, labels, weight = (part.pin_memory() for part in (batch.images, batch.labels, batch.weight))
        draws = {name: drawn.pin_memory() for name, drawn in batch.draws.items()}
        return Batch(images, labels, weight, batch.positions, draws)
