"""What a tensor is without its values: shape, strides and dtype, one object for each combination, compared by identity."""

from __future__ import annotations

import torch
from torch import Tensor


class Meta:
    """Shape, strides and dtype. Equal ones are one object, so that looking one up in a key costs nothing."""

    __slots__ = ("dtype", "shape", "stride")

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape, self.stride, self.dtype = shape, stride, dtype

    def empty(self, device: str) -> Tensor:
        """A tensor of this kind, on `meta` or on the host."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)


_all: dict[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], Meta] = {}


def meta_of(t: Tensor) -> Meta:
    """The one Meta of a tensor's kind."""
    key = (tuple(t.shape), t.stride(), t.dtype)
    found = _all.get(key)
    if found is None:
        found = _all[key] = Meta(*key)
    return found
