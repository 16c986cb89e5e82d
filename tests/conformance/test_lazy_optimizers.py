"""The optimizers and frozen parameters as a lazy device records them: one graph for all steps, and nothing that falls back."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="module")
def said(lazy_job: Any) -> dict[str, dict[str, Any]]:
    said: dict[str, dict[str, Any]] = lazy_job("lazy_optimizers.py", timeout=110)
    return said


def test_each_is_recorded_once_and_never_falls_back(said: dict[str, dict[str, Any]]) -> None:
    assert len(said) == 6
    for which, seen in said.items():
        compiles, fallbacks = zip(*seen["counts"])
        assert compiles[0] > 0 and not any(compiles[1:]), (which, seen)
        assert not any(fallbacks), (which, seen)


def test_each_ends_where_the_reference_does(said: dict[str, dict[str, Any]]) -> None:
    for which, seen in said.items():
        assert seen["near"] == 1.0 and (which == "lion None" or seen["worst"] == 1.0), (which, seen)
