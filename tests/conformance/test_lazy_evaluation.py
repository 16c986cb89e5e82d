"""An evaluation by class and by confidence on torch's own lazy device: the host's counts, at a plain one's cost."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(lazy_job: Any) -> dict[str, Any]:
    said: dict[str, Any] = lazy_job("lazy_evaluation.py")
    return said


def test_details_flush_as_often_as_a_plain_evaluation_and_leave_the_graph_nowhere(said: dict[str, Any]) -> None:
    assert said["full"] == said["plain"], "flushes, host reads, and what was compiled again"
    assert (said["full"]["fallbacks"], said["full"]["compiles"], said["full"]["host_reads"]) == (0, 0, 1)


def test_the_counts_are_the_hosts(said: dict[str, Any]) -> None:
    assert said["report"]["eval_confusion"] == said["host"]["eval_confusion"]
    assert sum(map(sum, said["host"]["eval_confusion"])) == 360 and said["host"]["eval_correct"] > 0
    for line, want in zip(said["report"]["eval_bins"], said["host"]["eval_bins"], strict=True):
        assert line == pytest.approx(want, rel=1e-5)


def test_memory_does_not_grow_over_60_evaluations(said: dict[str, Any]) -> None:
    """480 batches, in which an `arange` would leave 75 MiB behind."""
    assert said["grown"] < 16 << 10, f"{said['grown']} KiB"
