"""What the feed hands to a step."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """B samples, on the host until the step puts them on its device.

    images: uint8 in 0 .. 255, or float32 in [-1, 1], of shape (B, C, H, W).
    labels: int64 of shape (B,); 0 where the weight is 0 because of padding.
    weight: float32 of shape (B,); 0 for padding and for a picture that could not be read, else 1.
    positions: int64 of shape (B,); the global sample positions, from which keys are drawn.
    draws: what augmentation on the device draws for each row (`vitcore.data.draws`), by name; empty where it draws nothing.
    """

    images: Tensor
    labels: Tensor
    weight: Tensor
    positions: Tensor
    draws: dict[str, Tensor] = {}  # noqa: RUF012  (never written; the default of a NamedTuple)
