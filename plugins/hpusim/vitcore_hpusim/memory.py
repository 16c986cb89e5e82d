"""Bytes that the simulated device holds: what lives between flushes, and the most that a program needs while it runs."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

from torch import Tensor


class Meter:
    """Follows the storages of one run; two tensors of one storage count once."""

    def __init__(self, alive: dict[int, int]) -> None:
        self._uses: Counter[int] = Counter(dict.fromkeys(alive, 1))
        self.now = self.peak = sum(alive.values())

    def add(self, value: Any) -> None:
        """A result came to be."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        self._uses[storage._cdata] += 1
        if self._uses[storage._cdata] == 1:
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)

    def drop(self, value: Any) -> None:
        """A result is not needed any more."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        self._uses[storage._cdata] -= 1
        if self._uses[storage._cdata] == 0:
            self.now -= storage.nbytes()


class Ledger:
    """Every value that some tensor still holds."""

    def __init__(self) -> None:
        self._slots: weakref.WeakSet[Any] = weakref.WeakSet()
        self.peak = 0

    def own(self, slot: Any) -> None:
        """A slot has a value now."""
        self._slots.add(slot)

    def meter(self, inputs: list[Any]) -> Meter:
        """A meter that begins with all that is alive, the inputs of the run among it."""
        alive = self._alive()
        for value in inputs:
            if isinstance(value, Tensor):
                alive.setdefault(value.untyped_storage()._cdata, value.untyped_storage().nbytes())
        return Meter(alive)

    @property
    def in_use(self) -> int:
        """Bytes that live now."""
        return sum(self._alive().values())

    def _alive(self) -> dict[int, int]:
        storages = (slot.value.untyped_storage() for slot in list(self._slots) if slot.value is not None)
        return {s._cdata: s.nbytes() for s in storages}
