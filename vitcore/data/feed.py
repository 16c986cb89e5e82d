"""The feed: from a cursor to a batch, the same samples at every world size.

A cursor is a global sample position; the feed keeps none. Train batches follow the order of `vitcore.data.order`, eval
batches the data set's own order. All batches of a kind have one shape.
"""

import time

import numpy as np
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.batch import Batch
from vitcore.data.datasets import Dataset
from vitcore.data.draws import draw_batch
from vitcore.data.loading.foreman import IN_HAND, rows_of_a_chunk
from vitcore.data.loading.pinning import Pinning
from vitcore.data.loading.readahead import ReadAhead
from vitcore.data.order import Int64s, sample_indices, usable_length
from vitcore.data.pictures import PictureSplit
from vitcore.errors import VitcoreError

# Batches that are prepared ahead where workers decode: two, so that they go on while one is handed over; more where a batch
# is small for so many workers. Each is held in memory.
LEAST_AHEAD, MOST_AHEAD = 2, 16


class Feed:
    """Batches of one rank.

    micro_batch: samples of one rank in one micro-step. accumulation: micro-steps of one update. Their product with
    world_size is the global batch, whose ragged rest is dropped from each epoch. eval_batch: samples of one rank in one
    step of evaluation; None takes micro_batch. augment: what training does to pictures; None is nothing. pin: whether
    batches are in pinned memory, for devices that copy from it while they compute. tokens: the model's patches, where some
    are dropped. Raises VitcoreError for sizes below 1, a rank outside the world, too few pictures, an augmentation that the
    data cannot have, and an odd micro_batch where pictures are mixed, which is done in pairs.

    dropped: training pictures left out of each epoch (others each time). usable: those that are not.
    steps_per_epoch: updates an epoch. eval_steps: calls of next_eval that cover the evaluation split.

    waited: seconds, in all, that `next_train` took: what the training loop stood still for input. On a device that works
    while the host goes on it is the most that the device can have been idle for input: work that was queued before hides
    a part of it, up to the whole of a wait that is shorter than the queue.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int,
        micro_batch: int,
        accumulation: int = 1,
        world_size: int = 1,
        rank: int = 0,
        augment: Augment | None = None,
        eval_batch: int | None = None,
        pin: bool = False,
        tokens: int | None = None,
    ) -> None:
        eval_batch = micro_batch if eval_batch is None else eval_batch
        for name, size in (
            ("micro_batch", micro_batch),
            ("accumulation", accumulation),
            ("world_size", world_size),
            ("eval_batch", eval_batch),
        ):
            if size < 1:
                raise VitcoreError(f"feed: {name}={size} must be at least 1; give a positive one")
        if not 0 <= rank < world_size:
            raise VitcoreError(f"feed: rank {rank} is outside the world of {world_size}; ranks count from 0")
        augment = Augment() if augment is None else augment
        if augment.mixes and micro_batch % 2:
            raise VitcoreError(
                f"feed: mixup and cutmix mix pairs of pictures, and micro_batch={micro_batch} is odd; make "
                "train_batch_size / gradient_accumulation_steps even"
            )
        self.dataset = dataset
        self.seed = seed
        self.micro_batch = micro_batch
        self.eval_batch = eval_batch
        self.world_size = world_size
        self.rank = rank
        self.augment = augment
        self.tokens = tokens
        self.waited = 0.0
        self.global_batch = micro_batch * accumulation * world_size
        self.usable = usable_length(len(dataset.train), self.global_batch)
        self.dropped = len(dataset.train) - self.usable
        self.steps_per_epoch = self.usable // self.global_batch
        self.eval_steps = -(-len(dataset.eval) // (eval_batch * world_size))
        # Loading nothing makes a data set refuse, here and not in the first step, an augmentation it cannot have.
        nothing = np.empty(0, dtype=np.int64)
        dataset.train.load(nothing, nothing, seed, augment)
        self._pinning = Pinning() if pin else None
        self._pictures = [split for split in (dataset.train, dataset.eval) if isinstance(split, PictureSplit)]
        for split in self._pictures:
            split.start(policies=augment.of_bytes)
        workers = max([0, *(split.workers for split in self._pictures)])
        self._train = ReadAhead(self._load_train, self.after_train, "train", _ahead(workers, micro_batch))
        self._eval = ReadAhead(self._load_eval, self._after_eval, "eval", _ahead(workers, eval_batch))

    @property
    def bad_images(self) -> int:
        """Files that this rank could not read so far, each counted once."""
        return self.dataset.train.bad_images + self.dataset.eval.bad_images

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        """This rank's batch at `cursor`, and the cursor of the next micro-step.

        The ranks together take the positions from `cursor` to the next cursor, rank 0 the first. Raises VitcoreError
        for a negative cursor, and what loading raises.
        """
        if cursor < 0:
            raise VitcoreError(f"feed: the train cursor {cursor} is negative; start at 0 or at a saved cursor")
        began = time.perf_counter()
        batch = self._train.get(cursor)
        self.waited += time.perf_counter() - began
        return batch, self.after_train(cursor)

    def next_eval(self, cursor: int) -> tuple[Batch, int]:
        """This rank's evaluation batch at `cursor`, and the next cursor; an evaluation starts at 0.

        In `eval_steps` calls all ranks together see each picture once, in the data set's order; rows beyond the end are
        zero with weight 0. Raises VitcoreError for a cursor outside the split, and what loading raises.
        """
        if not 0 <= cursor < len(self.dataset.eval):
            raise VitcoreError(
                f"feed: the eval cursor {cursor} is outside the {len(self.dataset.eval)} pictures; "
                f"start each evaluation at 0 and make {self.eval_steps} calls"
            )
        return self._eval.get(cursor), cursor + self.eval_batch * self.world_size

    def close(self) -> None:
        """Stop reading ahead, and the data set's workers; may be called again."""
        for ahead in (self._train, self._eval):
            ahead.stop()
        # Before the threads that wait for them.
        for split in self._pictures:
            split.close()
        for ahead in (self._train, self._eval):
            ahead.close()

    def after_train(self, cursor: int) -> int:
        """The cursor of the micro-step after the one at `cursor`."""
        return cursor + self.micro_batch * self.world_size

    def _after_eval(self, cursor: int) -> int | None:
        following = cursor + self.eval_batch * self.world_size
        return following if following < len(self.dataset.eval) else None

    def _load_train(self, cursor: int) -> Batch:
        positions = _run(cursor + self.rank * self.micro_batch, self.micro_batch)
        indices = sample_indices(self.seed, positions, len(self.dataset.train), self.usable)
        images, labels, weight = self.dataset.train.load(indices, positions, self.seed, self.augment)
        height, width = images.shape[-2:]
        draws = draw_batch(self.seed, positions, weight, self.augment, (height, width), self.tokens)
        return self._pinned(Batch(images, labels, weight, torch.from_numpy(positions), draws))

    def _load_eval(self, cursor: int) -> Batch:
        positions = _run(cursor + self.rank * self.eval_batch, self.eval_batch)
        inside = positions[positions < len(self.dataset.eval)]
        images, labels, weight = self.dataset.eval.load(inside, inside, self.seed, None)
        images, labels, weight = (_padded(rows, self.eval_batch) for rows in (images, labels, weight))
        return self._pinned(Batch(images, labels, weight, torch.from_numpy(positions)))

    def _pinned(self, batch: Batch) -> Batch:
        return batch if self._pinning is None else self._pinning.pin(batch)


def _ahead(workers: int, batch: int) -> int:
    """Batches to prepare ahead, so that every worker has chunks in hand."""
    if workers == 0:
        return 1
    return min(MOST_AHEAD, max(LEAST_AHEAD, -(-IN_HAND * workers * rows_of_a_chunk(batch, workers) // batch)))


def _run(first: int, count: int) -> Int64s:
    return np.arange(first, first + count, dtype=np.int64)


def _padded(rows: Tensor, count: int) -> Tensor:
    """`rows` with zero rows after them, `count` in all."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows.new_zeros((count - len(rows), *rows.shape[1:]))])
