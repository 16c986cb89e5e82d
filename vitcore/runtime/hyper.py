"""`%hyper`: the named scalars that change from step to step, as floats and, where a kernel asks, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Hyper:
    """Scalars of one step. Kernels that take floats index it; kernels that record a graph take 0-d device tensors, so
    that a new value is an input of the graph and no new graph."""

    __slots__ = ("_device", "_tensors", "values")

    def __init__(self, values: Mapping[str, float], device: torch.device) -> None:
        self.values = values
        self._device = device
        self._tensors: dict[tuple[str, float], Tensor] = {}

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def tensor(self, name: str, times: float = 1.0) -> Tensor:
        """The scalar, times a constant of the host, as a 0-d f32 tensor on the device; made once a step."""
        key = (name, times)
        if key not in self._tensors:
            self._tensors[key] = torch.tensor(self.values[name] * times, dtype=torch.float32, device=self._device)
        return self._tensors[key]
