"""One buffer for all parameters, and for whatever has a number for each of theirs: gradients, slots, averages.

Group after group, those that are not trained last, each tensor beginning at a multiple of 64 bytes. What lies between is 0,
and has to be: it is in the norm. What is done alike to all numbers of a group is then one kernel.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.runtime.runtime import BoundGroup

# Numbers of float32 in a line of the cache, and in what vector units load at once.
_LINE = 16


class JoinedTuple(tuple[Tensor, ...]):
    """Tensors, one a parameter, that are views of the buffer `flat`, where there is one."""

    flat: Tensor
    stays: bool = False
    """Whether they are the same tensors in every step."""


class JoinedList(list[Tensor]):
    """As `JoinedTuple`, of gradients: only the trained parameters' are in the buffer."""

    flat: Tensor


class Layout:
    """Where each parameter's numbers lie."""

    def __init__(self, shapes: Sequence[torch.Size], groups: Sequence[BoundGroup]) -> None:
        self.shapes = shapes
        self.starts: dict[int, int] = {}
        self.spans: dict[str, slice] = {}
        """Of each group's numbers, by its name."""
        at = 0
        for group in groups:
            first = at
            at = self._place(group.indices, at)
            self.spans[group.name] = slice(first, at)
        self.trained = at
        """Numbers of trained parameters, with what lies between."""
        self.size = self._place((i for i in range(len(shapes)) if i not in self.starts), at)

    def _place(self, indices: Iterable[int], at: int) -> int:
        for i in indices:
            self.starts[i] = at
            at += -(-self.shapes[i].numel() // _LINE) * _LINE
        return at

    def gaps(self) -> list[int]:
        """The numbers that lie between the trained parameters'."""
        used = {at for i, start in self.starts.items() if start < self.trained for at in (start, self.end(i))}
        edges = sorted({*used, self.trained})
        starts = set(self.starts.values())
        return [n for a, b in itertools.pairwise(edges) if a not in starts for n in range(a, b)]

    def end(self, i: int) -> int:
        """Where parameter i's numbers end."""
        return self.starts[i] + self.shapes[i].numel()

    def view(self, flat: Tensor, i: int) -> Tensor:
        """Parameter i's part of a buffer, in its shape."""
        return flat[self.starts[i] : self.end(i)].view(self.shapes[i])

    def views(self, flat: Tensor) -> JoinedTuple:
        """All parameters' parts of a buffer."""
        joined = JoinedTuple(self.view(flat, i) for i in range(len(self.shapes)))
        joined.flat = flat
        return joined

    def zeros(self, device: torch.device, dtype: torch.dtype = torch.float32) -> JoinedTuple:
        """A buffer of zeros, in parts."""
        return self.views(torch.zeros(self.size, dtype=dtype, device=device))

    def adopt(self, values: Sequence[Tensor | None], device: torch.device) -> JoinedTuple | tuple[Tensor | None, ...]:
        """Values copied into a new buffer; as they are where some parameters have none."""
        if any(values[i] is None for i in self.starts if self.starts[i] < self.trained):
            return tuple(values)
        # What is not trained has no slots, and stands last.
        given = [value is not None for value in values]
        flat = torch.zeros(self.size if all(given) else self.trained, device=device)
        joined = JoinedTuple(self.view(flat, i) if yes else None for i, yes in enumerate(given))  # type: ignore[misc]
        joined.flat = flat
        for part, value in zip(joined, values, strict=True):
            if value is not None:
                part.copy_(value)
        return joined


def buffer(values: object) -> Tensor | None:
    """The buffer that the values are parts of, or None where they are tensors by themselves."""
    return getattr(values, "flat", None)
