"""`%hyper`: the named scalars that change from step to step, as floats and, where a kernel asks, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Hyper:
    """Scalars of one step. Kernels that take floats index it; kernels that record a graph take 0-d device tensors, so
    that a new value is an input of the graph and no new graph."""

    __slots__ = ("_device", "_pinned", "_tensors", "values")

    def __init__(self, values: Mapping[str, float], device: torch.device, *, pinned: bool = False) -> None:
        self.values = values
        self._device, self._pinned = device, pinned
        self._tensors: dict[tuple[str, float], Tensor] = {}

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def tensor(self, name: str, times: float = 1.0) -> Tensor:
        """The scalar, times a constant of the host, as a 0-d f32 tensor on the device; made once a step."""
        key = (name, times)
        if key not in self._tensors:
            value = torch.tensor(self.values[name] * times, dtype=torch.float32, pin_memory=self._pinned)
            # From pinned memory, so that the host does not wait for what the device has still to do.
            self._tensors[key] = value.to(self._device, non_blocking=self._pinned)
        return self._tensors[key]
