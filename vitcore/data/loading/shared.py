"""Memory that processes share: anonymous, so that nothing is left over whoever is killed, and passed on as a descriptor.

It is not under /dev/shm, whose size in containers is often 64 MB.
"""

from __future__ import annotations

import mmap
import os
import pickle
import tempfile
import weakref
from collections import deque
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

Span = tuple[int, int]
# Free blocks beyond so many are given back to the system.
MOST_FREE = 8
_ALIGN = 64
_numbers = count()


class Block:
    """`size` bytes, zero at first. `number` is its own in this process."""

    def __init__(self, size: int) -> None:
        self.number, self.size = next(_numbers), size
        # The file of macOS, which has no memfd, is deleted as soon as it is open.
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("vitcore")
        else:
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        os.ftruncate(self.fd, size)
        self.memory = mmap.mmap(self.fd, size)
        weakref.finalize(self, os.close, self.fd)


class Blocks:
    """Blocks for the pictures of batches, used again once nobody holds the batch.

    The rule of ownership: a block belongs to the tensor that `take` returned and to all that share its memory. The last
    of them gives it back by going away; until then nobody writes to it but those whom its holder asks. A device that
    copies later must keep a reference, as torch's own do.
    """

    def __init__(self) -> None:
        # A deque alone and no lock: blocks are given back wherever Python frees a tensor, also inside of `take`.
        self._free: deque[Block] = deque()
        self.gone: deque[int] = deque()
        """The numbers of the blocks that were given back to the system, for whoever has them mapped."""

    def take(self, shape: tuple[int, ...]) -> tuple[Block, Tensor]:
        """A block, and the uint8 tensor of `shape` that is its first bytes; what they hold is of no meaning."""
        size = int(np.prod(shape))
        block = self._fitting(size)
        array = np.frombuffer(block.memory, np.uint8, size)
        weakref.finalize(array, self._free.append, block).atexit = False
        return block, torch.from_numpy(array).view(shape)

    def _fitting(self, size: int) -> Block:
        for _ in range(len(self._free)):
            try:
                block = self._free.popleft()
            except IndexError:  # another thread was faster
                break
            if size <= block.size <= 2 * size:
                return block
            if len(self._free) < MOST_FREE:
                self._free.append(block)
        block = Block(size)
        weakref.finalize(block, self.gone.append, block.number)
        return block


def pack(value: Any) -> tuple[Block, list[Span]]:
    """A value pickled into a block, its arrays apart, so that processes which `unpack` it share them."""
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(pickle.dumps(value, protocol=5, buffer_callback=buffers.append)), *(b.raw() for b in buffers)]
    spans, end = [], 0
    for part in parts:
        spans.append((end, end + part.nbytes))
        end += -(-part.nbytes // _ALIGN) * _ALIGN
    block = Block(max(end, 1))
    for (first, last), part in zip(spans, parts, strict=True):
        block.memory[first:last] = part
    return block, spans


def unpack(memory: mmap.mmap, spans: list[Span]) -> Any:
    """The value of `pack`."""
    view = memoryview(memory)
    head, *buffers = (view[first:last] for first, last in spans)
    return pickle.loads(head, buffers=buffers)
