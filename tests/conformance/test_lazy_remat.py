"""Activation checkpointing on torch's own lazy device: the same bits, no further flush, nothing compiled again."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(lazy_job: Any) -> dict[str, Any]:
    said: dict[str, Any] = lazy_job("lazy_remat.py")
    return said


@pytest.mark.parametrize("precision", ["fp32", "bf16-casts"])
def test_blocks_compute_twice_and_end_in_the_same_bits(said: dict[str, Any], precision: str) -> None:
    without, with_ = said[f"{precision} none"], said[f"{precision} blocks"]
    assert with_["end"] == without["end"]
    assert (without["calls"], with_["calls"]) == (4, 8), "two steps of two micro-batches"
    assert with_["flushes"] == without["flushes"] > 0
    assert [with_[n] for n in ("compiles", "fallbacks", "host_reads")] == [0, 0, 0]
