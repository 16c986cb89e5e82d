"""Medians with intervals by the bootstrap (Efron 1979; the percentile interval), seeded, by NumPy alone.

Nothing is assumed of the noise: times of a busy machine have long tails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vitcore.errors import VitcoreError

RESAMPLES, LEVEL, SEED = 4000, 0.95, 0
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A median, the ends of its 95 % interval, and the least and the most that was seen of what it is the median of."""

    median: float
    low: float
    high: float
    least: float
    most: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f} .. {self.high:.3f}]"

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def median_interval(values: Sequence[float]) -> Interval:
    """The median of values that belong together, such as the ratios of pairs. VitcoreError where there is none."""
    data = _checked(values)
    low, high = _ends(_medians(data, np.random.default_rng(SEED)))
    return Interval(float(np.median(data)), low, high, float(data.min()), float(data.max()), len(data))


def ratio_of_medians(above: Sequence[float], below: Sequence[float]) -> Interval:
    """median(above) / median(below) of two samples that are not paired; each is drawn again by itself. The least and the most
    are those that any two of their values make. VitcoreError where one is empty or has a number that is not above 0."""
    a, b = _checked(above), _checked(below)
    if min(a.min(), b.min()) <= 0:
        raise VitcoreError("a ratio of times needs times above 0; one of these is not, so measure again")
    rng = np.random.default_rng(SEED)
    low, high = _ends(_medians(a, rng) / _medians(b, rng))
    ratio = float(np.median(a) / np.median(b))
    return Interval(ratio, low, high, float(a.min() / b.max()), float(a.max() / b.min()), min(len(a), len(b)))


def _checked(values: Sequence[float]) -> Floats:
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0 or not np.isfinite(data).all():
        raise VitcoreError("an interval needs one finite time or more; there is none, so measure again")
    return data


def _medians(data: Floats, rng: np.random.Generator) -> Floats:
    """Medians of as many drawn samples, each as large as the data; in parts, so that many rounds take little memory."""
    parts = -(-RESAMPLES * len(data) // 4_000_000)
    sizes = [len(part) for part in np.array_split(np.arange(RESAMPLES), parts)]
    return np.concatenate([np.median(data[rng.integers(0, len(data), (n, len(data)))], axis=1) for n in sizes])


def _ends(medians: Floats) -> tuple[float, float]:
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
