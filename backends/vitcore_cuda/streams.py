"""`data.put` on a stream of its own: the next batch is copied while this one's step computes."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from vitcore.runtime.reference.data import DeviceBatch
from vitcore.runtime.reference.data import put as reference

if TYPE_CHECKING:
    from vitcore.data.batch import Batch
    from vitcore.runtime.runtime import Runtime

_copying: weakref.WeakKeyDictionary[Runtime, Copies] = weakref.WeakKeyDictionary()


class Copies:
    """The stream of one runtime's copies, and what says that the newest is done."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self.cuda, self.stream, self.done = cuda, cuda.Stream(), None

    def put(self, rt: Runtime, batch: Batch, pixels: str, ahead: bool) -> DeviceBatch:
        """Copy; with `ahead` the batch is of the next step, and what the current stream waits for is the one before it, which
        has had a step's time."""
        current, earlier = self.cuda.current_stream(), self.done
        with self.cuda.stream(self.stream):
            made = reference(rt, batch, pixels)
            self.done = self.stream.record_event()
        for tensor in (made.images, made.labels, made.weight, *made.draws.values()):
            tensor.record_stream(current)  # its memory is the other stream's, and is used in this one
        if not ahead:
            current.wait_event(self.done)
        if earlier is not None:
            current.wait_event(earlier)
        return made


def put(rt: Runtime, batch: Batch, pixels: str = "", ahead: str = "") -> DeviceBatch:
    """As the reference, beside what the device computes."""
    if rt not in _copying:
        _copying[rt] = Copies()
    return _copying[rt].put(rt, batch, pixels, bool(ahead))
