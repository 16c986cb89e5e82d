"""One thread that runs worker processes: it hands out chunks of rows, and hears of their end or of a worker's death."""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextlib import suppress

import numpy as np
from torch import Tensor

from vitcore.data.loading.hiring import Hiring
from vitcore.data.loading.reading import Reader, Rows, Unread
from vitcore.data.loading.shared import Block, Blocks, Span, pack
from vitcore.data.loading.wire import Bell, HasFileno, Wire, wait_for
from vitcore.data.loading.worker import NOWHERE
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")

# A chunk is what a worker is asked for at once: few enough rows that all share a batch, and that a death repeats little.
LEAST_ROWS, MOST_ROWS = 4, 16
# Chunks that a worker has in hand, so that it never waits for the foreman.
IN_HAND = 2
# Workers that an image may kill before it is taken for unreadable.
DEATHS_OF_AN_IMAGE = 2
# Deaths without any work done in between, before it is the machine that is at fault and not an image.
DEATHS_IN_VAIN = 20


def rows_of_a_chunk(rows: int, workers: int) -> int:
    """Rows of a batch that one worker is asked for at once."""
    return min(MOST_ROWS, max(LEAST_ROWS, -(-rows // (IN_HAND * workers))))


def closed() -> VitcoreError:
    """What is raised where a loader was closed."""
    return VitcoreError("the loader is closed; read again to start its workers anew")


class _Job:
    """The rows of one call of `read`."""

    def __init__(self, reader: Reader, rows: Rows, block: Block) -> None:
        self.reader, self.rows, self.block = reader, rows, block
        self.unread: list[Unread] = []
        self.error: Exception | None = None
        self.done = threading.Event()
        self.left = 0


class _Chunk:
    """Some of a job's rows."""

    def __init__(self, job: _Job, first: int, last: int) -> None:
        self.job, self.first, self.last = job, first, last


class _Worker:
    """A worker process, and the chunks it has in hand, the one it is at first."""

    def __init__(self, slot: int, pid: int, wire: Wire) -> None:
        self.slot, self.pid, self.wire = slot, pid, wire
        self.chunks: deque[_Chunk] = deque()
        self.knows: set[int | Reader] = set()

    def fileno(self) -> int:
        return self.wire.fileno()


class _Closed(Exception):
    """The foreman was told to stop."""


class Foreman:
    """Runs the workers from a thread of its own, from construction until `stop` or an error that concerns them all."""

    def __init__(self, workers: int, *, policies: bool = False) -> None:
        self._count = workers
        self._blocks, self._bell, self._lock = Blocks(), Bell(), threading.Lock()
        self._chunks: deque[_Chunk] = deque()
        self._jobs: set[_Job] = set()
        self._workers: dict[int, _Worker] = {}
        self._packed: dict[Reader, tuple[int, Block, list[Span]]] = {}
        self._packing = threading.Lock()
        self._places = Block(8 * workers)
        self._at = np.frombuffer(self._places.memory, np.int64)
        self._killers: dict[Reader, dict[int, int]] = {}
        self._refused: dict[Reader, dict[int, str]] = {}
        self._vain = 0
        self._closing, self.ended = False, False
        self._error: Exception | None = None
        self._hiring = Hiring(self._bell, self._heed, policies=policies)
        self.thread = threading.Thread(target=self._run, name="vitcore-foreman", daemon=True)
        self.thread.start()

    def read(self, reader: Reader, rows: Rows) -> tuple[Tensor, list[Unread]]:
        """The pictures, uint8 (B, C, H, W), and the rows that are not what was asked for."""
        count = len(rows.indices)
        block, images = self._blocks.take((count, reader.view.channels, *reader.view.size))
        job, step = _Job(reader, rows, block), rows_of_a_chunk(count, self._count)
        chunks = [_Chunk(job, first, min(first + step, count)) for first in range(0, count, step)]
        job.left = len(chunks)
        self._pack(reader)
        with self._lock:
            if self.ended:
                raise self._error or closed()
            self._jobs.add(job)
            self._chunks.extend(chunks)
        self._bell.ring()
        job.done.wait()
        if job.error is not None:
            raise job.error
        return images, sorted(job.unread)

    def stop(self) -> None:
        """Ask the thread to end."""
        self._closing = True
        self._bell.ring()

    def _pack(self, reader: Reader) -> None:
        with self._packing:
            if reader in self._packed:
                return
            try:
                self._packed[reader] = (len(self._packed), *pack(reader))
            except Exception as error:  # a source of somebody else's: whatever it raises is the reason
                raise VitcoreError(
                    f"the data set's source ({type(reader.source).__name__}) cannot be sent to worker processes "
                    f'({type(error).__name__}: {error}); set loader to "threads"'
                ) from error

    def _run(self) -> None:
        error: Exception | None = None
        try:
            for slot in range(self._count):
                self._hire(slot)
            while True:
                self._hand_out()
                ends: list[HasFileno] = [self._bell, *self._workers.values()]
                for ready in wait_for(ends):
                    if isinstance(ready, _Worker):
                        self._hear(ready)
                    else:
                        self._heed()
        except _Closed:
            error = closed()
        except Exception as caught:
            error = caught
        finally:
            self._end(error or closed())

    def _heed(self) -> None:
        self._bell.hush()
        if self._closing:
            raise _Closed

    def _end(self, error: Exception) -> None:
        try:
            for worker in self._workers.values():
                worker.wire.close()
            self._hiring.close()
        finally:
            # Only now, when no worker writes to the batches that are given up.
            with self._lock:
                self.ended, self._error = True, error
                jobs, self._jobs = self._jobs, set()
            for job in jobs:
                job.error = job.error or error
                job.done.set()
            self._bell.close()

    def _hand_out(self) -> None:
        """Give waiting chunks to the workers, the first to each before the second to any."""
        while self._blocks.gone:
            number = self._blocks.gone.popleft()
            for worker in self._workers.values():
                self._forget(worker, number)
        for load in range(IN_HAND):
            for worker in self._workers.values():
                if len(worker.chunks) == load:
                    with self._lock:
                        chunk = self._chunks.popleft() if self._chunks else None
                    if chunk is None:
                        return
                    self._send(worker, chunk)

    def _send(self, worker: _Worker, chunk: _Chunk) -> None:
        job, reader = chunk.job, chunk.job.reader
        number, packed, spans = self._packed[reader]
        shape, rows = (reader.view.channels, *reader.view.size), job.rows.part(chunk.first, chunk.last)
        refused = self._refused.get(reader, {})
        worker.chunks.append(chunk)
        with suppress(OSError):  # It is dead, which its wire will say; the chunk is in its hand.
            if reader not in worker.knows:
                worker.wire.send("block", packed.number, packed.size, True, fd=packed.fd)
                worker.wire.send("reader", number, packed.number, spans)
                worker.knows.add(reader)
            self._show(worker, job.block)
            worker.wire.send("rows", number, job.block.number, chunk.first, shape, rows, refused)

    def _show(self, worker: _Worker, block: Block) -> None:
        if block.number not in worker.knows:
            worker.wire.send("block", block.number, block.size, False, fd=block.fd)
            worker.knows.add(block.number)

    def _forget(self, worker: _Worker, number: int) -> None:
        if number in worker.knows:
            worker.knows.discard(number)
            with suppress(OSError):  # as in _send
                worker.wire.send("forget", number)

    def _hear(self, worker: _Worker) -> None:
        try:
            what, *rest = worker.wire.receive()
        except (EOFError, OSError):
            self._bury(worker)
            return
        chunk, self._vain = worker.chunks.popleft(), 0
        job = chunk.job
        if what == "done":
            job.unread += [unread._replace(row=unread.row + chunk.first) for unread in rest[0]]
        elif what == "refused":
            job.error = job.error or VitcoreError(rest[0])
        else:
            job.error = job.error or RuntimeError(f"in a worker process: {rest[0]}\n{rest[1]}")
        job.left -= 1
        # Only when no worker writes to its block any more.
        if job.left == 0:
            with self._lock:
                self._jobs.discard(job)
            job.done.set()

    def _bury(self, worker: _Worker) -> None:
        """A worker is dead: say at which image, replace it, and give its chunks to others."""
        del self._workers[worker.slot]
        worker.wire.close()
        how, index = self._hiring.ended(worker.pid), int(self._at[worker.slot])
        self._vain += 1
        if self._vain > DEATHS_IN_VAIN:
            raise VitcoreError(
                f"worker processes die one after the other, the last {how}; give more memory or fewer --workers, or set "
                "--loader threads"
            )
        if worker.chunks and index != NOWHERE:
            self._blame(worker.chunks[0].job.reader, index, how)
        else:
            log.warning("a worker process died between two images, %s; another takes its place", how)
        with self._lock:
            self._chunks.extendleft(reversed(worker.chunks))
        self._hire(worker.slot)

    def _blame(self, reader: Reader, index: int, how: str) -> None:
        deaths = self._killers.setdefault(reader, {})
        deaths[index] = deaths.get(index, 0) + 1
        where = reader.source.where(index)
        if deaths[index] < DEATHS_OF_AN_IMAGE:
            log.warning("%s: the worker process that decoded it died, %s; another tries once more", where, how)
            return
        log.warning("%s: the worker process that decoded it died again, %s", where, how)
        # A new dictionary, as the old one may be on its way.
        reason = f"{deaths[index]} worker processes died over it, the last {how}"
        self._refused[reader] = {**self._refused.get(reader, {}), index: reason}
        self._vain = 0

    def _hire(self, slot: int) -> None:
        """Have a worker forked for a slot."""
        wire, there = Wire.pair()
        self._at[slot] = NOWHERE
        with there:
            pid = self._hiring.fork(there.fileno())
        worker = self._workers[slot] = _Worker(slot, pid, wire)
        with suppress(OSError):  # as in _send
            self._show(worker, self._places)
            wire.send("slot", self._places.number, slot)
