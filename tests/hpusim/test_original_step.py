"""What a step with accumulation 16 asks of the card, beside the original recipe's loop with its hand-placed marks and reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COLUMNS = ("flushes", "compilations", "largest graph", "ops")


@pytest.fixture(scope="module")
def seen(card: Any) -> dict[str, list[dict[str, int]]]:
    done = card(str(HERE / "original_job.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[dict[str, int]]] = json.loads(done.stdout.splitlines()[-1])
    return found


def totals(steps: list[dict[str, int]]) -> dict[str, int]:
    """Of a step once all is compiled; compilations of all steps together."""
    return {**steps[-1], "compilations": sum(s["compilations"] for s in steps)}


def test_ours_asks_for_less_in_each_column(seen: dict[str, list[dict[str, int]]]) -> None:
    original, ours = totals(seen["original"]), totals(seen["ours"])
    print(f"\n{'':<10}" + "".join(f"{c:>16}" for c in (*COLUMNS, "launches")))
    for name, row in (("original", original), ("ours", ours)):
        print(f"{name:<10}" + "".join(f"{row[c]:>16}" for c in (*COLUMNS, "launches")))
    assert all(ours[c] < original[c] for c in COLUMNS), (original, ours)


def test_the_original_is_what_its_lines_ask_for(seen: dict[str, list[dict[str, int]]]) -> None:
    """Two marks a micro-batch, one read, two marks of the vendor's SGD, one more after it; the barrier flushes nothing."""
    assert {s["flushes"] for s in seen["original"]} == {2 * 16 + 1 + 2 + 1}
    # Of these the read finds nothing to launch, and so does the mark after the SGD's own.
    assert {s["launches"] for s in seen["original"]} == {2 * 16 + 2}
    # Zeroing falls into the next step's first graph, which is then another than in the first step.
    assert [s["compilations"] > 0 for s in seen["original"]] == [True, True, False, False, False]


def test_ours_is_what_its_text_says(seen: dict[str, list[dict[str, int]]]) -> None:
    """Two marks a micro-batch, two flushes of the vendor's SGD, one mark after the update, which applies the step where the
    gradients are finite: one launch more than the original, which does not look."""
    assert {s["flushes"] for s in seen["ours"]} == {s["launches"] for s in seen["ours"]} == {2 * 16 + 2 + 1}
    assert [s["compilations"] for s in seen["ours"]] == [5, 0, 0, 0, 0]
