"""A data set of pictures, opened: what every format that supplies samples ends in."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitcore.data.datasets import DatasetOptions, check_channels
from vitcore.data.pictures import PictureSplit
from vitcore.data.source import Source


@dataclass(frozen=True)
class PictureSet:
    """Two splits of pictures with the same classes: a `vitcore.data.datasets.Dataset`."""

    name: str
    class_names: list[str]
    train: PictureSplit
    eval: PictureSplit
    channels: int = 3

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def open_pictures(
    options: DatasetOptions, class_names: list[str], train: Source, val: Source, channels: int = 3
) -> PictureSet:
    """The data set of two sources, whose pictures have `channels` as they are stored; encoded files become RGB.

    Grey pictures serve a model of three channels, which then are alike. VitcoreError for a model of another number.
    """
    delivered = 3 if channels == 1 and options.channels == 3 else channels
    check_channels(options.name, delivered, options.channels)
    options = replace(options, channels=delivered)
    return PictureSet(
        options.name, class_names, PictureSplit(train, options), PictureSplit(val, options), channels=delivered
    )
