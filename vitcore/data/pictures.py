"""A split of pictures: from a source's samples to batches of uint8, decoded when they are asked for."""

import logging
import threading

import numpy as np
import torch
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.datasets import DatasetOptions
from vitcore.data.loading.loader import Inline, Loader, needs_workers
from vitcore.data.loading.reading import Reader, Rows, Unread
from vitcore.data.order import Int64s
from vitcore.data.source import Source
from vitcore.data.warp import augment_reals
from vitcore.errors import VitcoreError

log = logging.getLogger("vitcore")


class PictureSplit:
    """The pictures of a source, decoded when they are asked for: uint8, or float32 when warped.

    A picture that cannot be read stops the run (VitcoreError). With bad_images "skip" it is a zero picture of weight 0. With
    "replace" another sample takes its place in training, picture and label, and in evaluation it is skipped. It is named
    once and counted once.
    """

    def __init__(self, source: Source, options: DatasetOptions) -> None:
        self._source = source
        self._bad_images = options.bad_images
        self._reader = Reader(source, options.view, replaces=options.bad_images == "replace")
        self._loader: Loader = options.decoders if needs_workers(source, options.view) else Inline()
        self._bad: set[int] = set()
        self._naming = threading.Lock()

    def __len__(self) -> int:
        return len(self._source)

    @property
    def source(self) -> Source:
        """The samples as they are stored."""
        return self._source

    @property
    def bad_images(self) -> int:
        """Pictures that could not be read so far, each counted once."""
        return len(self._bad)

    @property
    def workers(self) -> int:
        """How many pictures are decoded at a time beside the caller; 0: the caller decodes."""
        return self._loader.workers

    def start(self, *, policies: bool = False) -> None:
        """Begin to start the workers, which would else start with the first pictures; policies: whether they will change
        pictures (`Augment.of_bytes`)."""
        self._loader.start(policies=policies)

    def close(self) -> None:
        """End the workers, of all splits that were opened with the same options; loading starts them anew."""
        self._loader.close()

    def load(
        self, indices: Int64s, positions: Int64s, seed: int, augment: Augment | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `vitcore.data.datasets.Split.load`."""
        rows = Rows(indices, positions, seed, augment)
        images, unread = (self._loader if len(indices) else Inline()).read(self._reader, rows)
        used, weight = np.array(indices), torch.ones(len(indices))
        for row in unread:
            self._name(row, replaced=self._reader.replaces and augment is not None)
            if row.used < 0:
                weight[row.row] = 0.0
            else:
                used[row.row] = row.used
        if augment is not None and augment.of_reals:
            images = augment_reals(images.float() / 255.0, seed, positions, augment) * 2.0 - 1.0
        return images, torch.from_numpy(self._source.labels[used]), weight

    def _name(self, row: Unread, *, replaced: bool) -> None:
        """Count and name the pictures that could not be read for a row; VitcoreError where that ends the run."""
        for index, reason in row.faults:
            what = f"{self._source.where(index)}: not a readable picture ({reason})"
            if self._bad_images == "stop":
                raise VitcoreError(
                    f'{what}; replace or remove the file, or set bad_images to "skip" to train without it, or to "replace" '
                    "to train with another in its place"
                )
            with self._naming:
                known = index in self._bad
                self._bad.add(index)
            if not known:
                log.warning("%s; %s", what, "replaced" if replaced else "skipped")
        if replaced and row.used < 0:
            raise VitcoreError(
                f"{self._source.where(row.faults[0][0])}: not a readable picture, and neither is any of the "
                f"{len(row.faults) - 1} that were drawn in its place; check the files of the data set"
            )
