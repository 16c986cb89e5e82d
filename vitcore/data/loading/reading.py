"""The rows of a batch, one after the other: read, decoded, and replaced where they cannot be. It runs in the calling
thread, in threads, or in worker processes, and depends on nothing but its arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vitcore.data.augment import Augment
from vitcore.data.decode import UnreadablePicture, picture_into
from vitcore.data.order import REPLACE_STREAM, Int64s, draw_uniform
from vitcore.data.places import draw_crops
from vitcore.data.policy import apply_policy, draw_policy
from vitcore.data.source import Source
from vitcore.data.view import View

# Samples that are tried in the place of one that cannot be read.
REPLACEMENTS = 10


class Rows(NamedTuple):
    """What is to be read: samples by index, each with the position in the training order that its draws come from."""

    indices: Int64s
    positions: Int64s
    seed: int
    augment: Augment | None

    def part(self, first: int, last: int) -> Rows:
        """Some of the rows."""
        return Rows(self.indices[first:last], self.positions[first:last], self.seed, self.augment)


class Draws(NamedTuple):
    """What is drawn for each of some rows on the host, of shape (rows, count); None where nothing is."""

    crops: npt.NDArray[np.float64] | None
    policy: npt.NDArray[np.float64] | None


class Unread(NamedTuple):
    """A row whose sample could not be read.

    used: the index of the sample that stands there in its place, or -1 where the row is zero. faults: each sample that
    was tried in vain, the row's own first, with the reason.
    """

    row: int
    used: int
    faults: tuple[tuple[int, str], ...]


class Watch(NamedTuple):
    """How whoever asks for rows follows what is done. at: told the index of each sample before it is touched. refused:
    samples that are not to be touched, each with the reason."""

    at: Callable[[int], None] = lambda index: None
    refused: Mapping[int, str] = {}


class Reader:
    """Decodes samples of a source as a view says. Pickled once for all worker processes.

    replaces: whether, in training, another sample takes the place of one that cannot be read: the first readable one of
    `REPLACEMENTS`, drawn from (seed, position), so that it is the same on any number of ranks and workers. Its crop and
    policy are those of the place.
    """

    def __init__(self, source: Source, view: View, *, replaces: bool = False) -> None:
        self.source = source
        self.view = view
        self.replaces = replaces

    def read(self, out_BCHW: Tensor, rows: Rows, watch: Watch) -> list[Unread]:
        """Fill `out_BCHW`, uint8, with the samples of `rows`; where there is no picture it becomes zero."""
        draws = self.draws(rows)
        found = (self.row(out_BCHW[row], row, rows, draws, watch) for row in range(len(rows.indices)))
        return [unread for unread in found if unread is not None]

    def draws(self, rows: Rows) -> Draws:
        """The draws of `rows`."""
        augment = rows.augment
        return Draws(
            draw_crops(rows.seed, rows.positions) if augment is not None and augment.crop is not None else None,
            draw_policy(rows.seed, rows.positions, augment) if augment is not None and augment.of_bytes else None,
        )

    def row(self, out_CHW: Tensor, row: int, rows: Rows, draws: Draws, watch: Watch) -> Unread | None:
        """Fill the picture of one row, and return None where its own sample could be read."""
        index, faults = int(rows.indices[row]), {}
        if (reason := self._picture(out_CHW, index, row, rows.augment, draws, watch)) is None:
            return None
        faults[index] = reason
        for other in self._others(rows, row):
            if other in faults:
                continue
            if (reason := self._picture(out_CHW, other, row, rows.augment, draws, watch)) is None:
                return Unread(row, other, tuple(faults.items()))
            faults[other] = reason
        out_CHW.zero_()
        return Unread(row, -1, tuple(faults.items()))

    def _others(self, rows: Rows, row: int) -> list[int]:
        """The samples that may take the place of a row's own, in their order."""
        if not self.replaces or rows.augment is None:
            return []
        draws = draw_uniform(rows.seed, rows.positions[row : row + 1], REPLACE_STREAM, REPLACEMENTS)[0]
        return [int(draw * len(self.source)) for draw in draws.tolist()]

    def _picture(
        self, out_CHW: Tensor, index: int, row: int, augment: Augment | None, draws: Draws, watch: Watch
    ) -> str | None:
        """Fill the picture of one row with a sample; the reason where that cannot be."""
        if index in watch.refused:
            return watch.refused[index]
        watch.at(index)
        try:
            stored = self.source.read(index)
            if augment is None or draws.crops is None:
                picture_into(out_CHW, stored, self.view)
            else:
                picture_into(out_CHW, stored, self.view, draws.crops[row], augment.crop)
        except UnreadablePicture as error:
            return str(error)
        if augment is not None and draws.policy is not None:
            out_CHW.copy_(apply_policy(out_CHW, draws.policy[row], augment))
        return None
