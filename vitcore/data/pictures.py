"""A split of pictures: from a source's samples to batches of uint8, decoded when they are asked for."""

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vitcore.data.augment import Augment, draw_crops
from vitcore.data.datasets import DatasetOptions
from vitcore.data.decode import UnreadablePicture, picture_into
from vitcore.data.order import Int64s
from vitcore.data.source import Source
from vitcore.data.warp import augment_reals
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")


class PictureSplit:
    """The pictures of a source, decoded when they are asked for: uint8, or float32 when warped.

    A picture that cannot be read stops the run (VitcoreError), or, with bad_images "skip", is a zero picture of weight 0; it
    is named once.
    """

    def __init__(self, source: Source, options: DatasetOptions) -> None:
        self._source = source
        self._view = options.view
        self._bad_images = options.bad_images
        workers = 2 if options.workers == "auto" else options.workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="vitcore-decode") if workers else None
        self._bad: set[int] = set()

    def __len__(self) -> int:
        return len(self._source)

    @property
    def bad_images(self) -> int:
        """Pictures that could not be read so far, each counted once."""
        return len(self._bad)

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `vitcore.data.datasets.Split.load`."""
        share = None if augment is None else augment.crop
        draws = draw_crops(seed, positions) if share is not None else None
        images = torch.zeros((len(indices), self._view.channels, *self._view.size), dtype=torch.uint8)
        weight = torch.ones(len(indices))

        def decode(row: int) -> bool:
            return self._picture(images[row], int(indices[row]), None if draws is None else draws[row], share)

        rows = range(len(indices))
        good: Iterable[bool] = map(decode, rows) if self._pool is None else self._pool.map(decode, rows)
        for row, read in enumerate(good):
            weight[row] = float(read)
        if augment is not None and augment.of_reals:
            images = augment_reals(images.float() / 255.0, seed, positions, augment) * 2.0 - 1.0
        return images, torch.from_numpy(self._source.labels[indices]), weight

    def _picture(
        self, out_CHW: Tensor, index: int, draws: npt.NDArray[np.float64] | None, share: tuple[float, float] | None
    ) -> bool:
        try:
            picture_into(out_CHW, self._source.read(index), self._view, draws, share)
        except UnreadablePicture as error:
            where = self._source.where(index)
            if self._bad_images == "stop":
                raise VitcoreError(
                    f"{where}: not a readable picture ({error}); replace or remove the file, "
                    'or set bad_images to "skip" to train without it'
                ) from error
            if index not in self._bad:
                self._bad.add(index)
                log.warning("%s: not a readable picture (%s); skipped", where, error)
            return False
        return True
