"""Two files of a benchmark beside each other: how many times as long the second takes, and whether it counts the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitcore.bench.bootstrap import Interval, ratio_of_medians
from vitcore.bench.files import Benchmark, Saved
from vitcore.errors import VitcoreError


@dataclass(frozen=True)
class Difference:
    """A counted fact that is not the same; None where a file has it not."""

    fact: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.fact}: {_said(self.before)} -> {_said(self.after)}"


@dataclass(frozen=True)
class Row:
    """One benchmark in both files."""

    name: str
    ratio: Interval
    """Median seconds of the second over those of the first."""
    verdict: str
    """`slower` or `faster` where the whole interval is beyond the threshold, `differs` where counts do, else `same`."""
    counted: str
    """What is to be said of the counts."""
    differences: tuple[Difference, ...]

    @property
    def fails(self) -> bool:
        """Whether it is worse, or does other things."""
        return self.verdict == "slower" or bool(self.differences)


def compare(first: Saved, second: Saved, threshold: float, *, across_machines: bool = False) -> list[Row]:
    """Rows of what both have, in the order of the first; `threshold` in percent. VitcoreError where they have nothing in common,
    or were measured in different places and that is not asked for."""
    names = [name for name in first.benchmarks if name in second.benchmarks]
    if not names:
        raise VitcoreError(f"{first.title} and {second.title} have no benchmark in common; give two files of one suite with one "
                           "set of options")  # fmt: skip
    if not across_machines:
        _refuse_other_places(first, second, names)
    return [_row(first.benchmarks[name], second.benchmarks[name], threshold) for name in names]


def _refuse_other_places(first: Saved, second: Saved, names: list[str]) -> None:
    pairs = [("the machine", first.machine, second.machine)]
    pairs += [(name, first.benchmarks[name].place, second.benchmarks[name].place) for name in names]
    for what, before, after in pairs:
        for key in {**before, **after}:
            if before.get(key) != after.get(key):
                raise VitcoreError(
                    f"{first.title} and {second.title} were measured in different places: {key} of {what} is "
                    f"{before.get(key)!r} in the first and {after.get(key)!r} in the second; measure both in one, or pass "
                    "--across-machines"
                )


def _row(before: Benchmark, after: Benchmark, threshold: float) -> Row:
    ratio = ratio_of_medians(after.seconds, before.seconds)
    differences, counted = _counts(before.counts, after.counts)
    verdict = "differs" if differences else "same"
    if ratio.low > 1 + threshold / 100:
        verdict = "slower"
    elif ratio.high < 1 - threshold / 100 and not differences:
        verdict = "faster"
    return Row(before.name, ratio, verdict, counted, differences)


def _counts(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> tuple[tuple[Difference, ...], str]:
    if before is None and after is None:
        return (), "none"
    if before is None or after is None:
        return (), f"in the {'second' if before is None else 'first'} alone"
    facts = [*before, *(fact for fact in after if fact not in before)]
    found = [
        Difference(fact, before.get(fact), after.get(fact)) for fact in facts if before.get(fact) != after.get(fact)
    ]
    return tuple(found), f"{len(found)} of {len(facts)} differ" if found else f"{len(facts)} equal"


def _said(value: Any) -> str:
    return "not counted" if value is None else str(value)
