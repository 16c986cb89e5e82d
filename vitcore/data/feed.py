"""The feed: from a cursor to a batch, the same samples at every world size.

A cursor is a global sample position; the feed keeps none. Train batches follow the order of `vitcore.data.order`, eval
batches the data set's own order. All batches of a kind have one shape.
"""

import numpy as np
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.batch import Batch
from vitcore.data.datasets import Dataset
from vitcore.data.order import Int64s, sample_indices, usable_length
from vitcore.data.readahead import ReadAhead
from vitcore.errors import VitcoreError


class Feed:
    """Batches of one rank.

    micro_batch: samples of one rank in one micro-step. accumulation: micro-steps of one update. Their product with
    world_size is the global batch, whose ragged rest is dropped from each epoch. eval_batch: samples of one rank in one
    step of evaluation; None takes micro_batch. Raises VitcoreError for sizes below 1, a rank outside the world, too few
    pictures, and an augmentation that the data cannot have.

    dropped: training pictures left out of each epoch (others each time). usable: those that are not.
    steps_per_epoch: updates an epoch. eval_steps: calls of next_eval that cover the evaluation split.
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
        self.dataset = dataset
        self.seed = seed
        self.micro_batch = micro_batch
        self.eval_batch = eval_batch
        self.world_size = world_size
        self.rank = rank
        self.augment = augment
        self.global_batch = micro_batch * accumulation * world_size
        self.usable = usable_length(len(dataset.train), self.global_batch)
        self.dropped = len(dataset.train) - self.usable
        self.steps_per_epoch = self.usable // self.global_batch
        self.eval_steps = -(-len(dataset.eval) // (eval_batch * world_size))
        # Loading nothing makes a data set refuse, here and not in the first step, an augmentation it cannot have.
        nothing = np.empty(0, dtype=np.int64)
        dataset.train.load(nothing, nothing, seed, augment)
        self._train = ReadAhead(self._load_train, self.after_train, "train")
        self._eval = ReadAhead(self._load_eval, self._after_eval, "eval")

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
        return self._train.get(cursor), self.after_train(cursor)

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
        """Stop reading ahead; may be called again."""
        self._train.close()
        self._eval.close()

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
        return Batch(images, labels, weight, torch.from_numpy(positions))

    def _load_eval(self, cursor: int) -> Batch:
        positions = _run(cursor + self.rank * self.eval_batch, self.eval_batch)
        inside = positions[positions < len(self.dataset.eval)]
        images, labels, weight = self.dataset.eval.load(inside, inside, self.seed, None)
        return Batch(
            _padded(images, self.eval_batch),
            _padded(labels, self.eval_batch),
            _padded(weight, self.eval_batch),
            torch.from_numpy(positions),
        )


def _run(first: int, count: int) -> Int64s:
    return np.arange(first, first + count, dtype=np.int64)


def _padded(rows: Tensor, count: int) -> Tensor:
    """`rows` with zero rows after them, `count` in all."""
    if len(rows) == count:
        return rows
    return torch.cat([rows, rows.new_zeros((count - len(rows), *rows.shape[1:]))])
