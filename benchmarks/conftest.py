"""What the benchmarks share: interleaved pairs and their median ratio with an interval."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios and its 95 % interval (order statistics, no assumption about the noise)."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f} .. {self.high:.3f}], {self.pairs} pairs"


def measure(first: Callable[[], object], second: Callable[[], object], *, pairs: int, inner: int = 1) -> Ratio:
    """time(first) / time(second), pair by pair, the order swapped from pair to pair; above 1 the second is faster."""
    first(), second()
    ratios = []
    for i in range(pairs):
        order = (first, second) if i % 2 == 0 else (second, first)
        times = {}
        for run in order:
            start = time.perf_counter()
            for _ in range(inner):
                run()
            times[run] = time.perf_counter() - start
        ratios.append(times[first] / times[second])
    ratios.sort()
    # The interval whose ends are the order statistics around n/2 +- 1.96 sqrt(n)/2.
    reach = 0.98 * pairs**0.5
    low, high = max(0, int(pairs / 2 - reach)), min(pairs - 1, int(pairs / 2 + reach))
    return Ratio(statistics.median(ratios), ratios[low], ratios[high], pairs)


@pytest.fixture
def paired() -> Callable[..., Ratio]:
    """`paired(first, second, pairs=..., inner=...)`: the two in turn in this process."""
    return measure


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Print a line that is seen without -s."""

    def line(text: str) -> None:
        with capsys.disabled():
            print("\n  " + text)

    return line
