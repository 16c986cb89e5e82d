"""How a stored picture becomes a model's input: its size and the way there, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitcore.errors import VitcoreError

Interpolation = Literal["bilinear", "bicubic"]
Resize = Literal["squash", "crop"]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model takes, and how whole pictures are fitted into it.

    size: (rows, columns) in pixels. channels: 3, or 1 for grey. interpolation: of every resize, always antialiased.
    resize: how a picture that is not cropped at random is fitted: `squash` stretches the whole picture, as the original
    recipe evaluates; `crop` resizes its shorter side to size / crop_pct, keeps the aspect and takes the centre, as everyone
    else does. Raises VitcoreError for a crop_pct outside (0, 1].
    """

    size: tuple[int, int]
    channels: int = 3
    interpolation: Interpolation = "bilinear"
    resize: Resize = "squash"
    crop_pct: float = 0.875

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_pct <= 1.0:
            raise VitcoreError(
                f"crop_pct={self.crop_pct} is no share of a picture's side; give one in (0, 1], as 0.875"
            )
