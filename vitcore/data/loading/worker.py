"""What a worker process does: decode the rows that it is asked for into memory that it shares with the one who asks."""

from __future__ import annotations

import mmap
import os
import traceback
from functools import partial
from typing import Any

import numpy as np
import torch

from vitcore.data.loading.reading import Reader, Rows, Watch
from vitcore.data.loading.shared import unpack
from vitcore.data.loading.wire import Wire
from vitcore.errors import VitcoreError

# In the place where a worker writes what image it is at: at none.
NOWHERE = -1


def work(wire: Wire) -> None:
    """Decode what the wire asks for, until it closes."""
    blocks: dict[int, mmap.mmap] = {}
    readers: dict[int, Reader | Exception] = {}
    place = np.zeros(1, np.int64)
    while True:
        order, *rest = wire.receive()
        if order == "block":
            number, size, private = rest
            fd = wire.receive_fd()
            # Private: what a source writes to its own arrays is no business of the others.
            blocks[number] = mmap.mmap(fd, size, access=mmap.ACCESS_COPY if private else mmap.ACCESS_WRITE)
            os.close(fd)
        elif order == "forget":
            del blocks[rest[0]]
        elif order == "slot":
            place = np.frombuffer(blocks[rest[0]], np.int64)[rest[1] :][:1]
            place[0] = NOWHERE
        elif order == "reader":
            number, block, spans = rest
            try:
                readers[number] = unpack(blocks.pop(block), spans)
            except Exception as error:  # a source of somebody else's
                readers[number] = error
        elif order == "rows":
            number, block, first, shape, rows, refused = rest
            watch = Watch(partial(place.__setitem__, 0), refused)
            try:
                answer: tuple[Any, ...] = ("done", _read(readers[number], blocks[block], first, shape, rows, watch))
            except VitcoreError as error:
                answer = ("refused", str(error))
            except Exception as error:
                answer = ("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
            place[0] = NOWHERE
            wire.send(*answer)


def _read(
    reader: Reader | Exception, block: mmap.mmap, first: int, shape: tuple[int, ...], rows: Rows, watch: Watch
) -> Any:
    if isinstance(reader, Exception):
        raise VitcoreError(
            f"a worker process cannot load the data set's source ({type(reader).__name__}: {reader}); define it in a module "
            'that can be imported, or set loader to "threads"'
        ) from reader
    count = len(rows.indices)
    size = int(np.prod(shape))
    pixels = np.frombuffer(block, np.uint8, count * size, first * size)
    return reader.read(torch.from_numpy(pixels).view(count, *shape), rows, watch)
