"""`metrics.count` against a count by NumPy that shares no idea with it: sort, then look for the label."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vitcore.runtime.reference import metrics
from vitcore.runtime.reference.data import DeviceBatch

RT: Any = SimpleNamespace(device=torch.device("cpu"))


def count(logits: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    rows = torch.arange(len(labels))
    batch = DeviceBatch(torch.zeros(len(labels), 1, 1, 1), labels, weight, rows)
    found = metrics.count(RT, metrics.zero(RT), logits, batch)
    return {name.removeprefix("eval_"): float(v) for name, v in found.items() if name.startswith("eval_")}


def by_numpy(logits: Tensor, labels: Tensor, weight: Tensor) -> dict[str, float]:
    total = {"loss": 0.0, "correct": 0, "correct5": 0, "total": 0}
    for row, label, w in zip(logits.double().numpy(), labels.tolist(), weight.tolist(), strict=True):
        if w == 0:
            continue
        total["total"] += 1
        total["loss"] += float(np.log(np.exp(row - row.max()).sum()) + row.max() - row[label])
        others = np.sort(np.delete(row, label))[::-1]  # best first
        total["correct"] += bool(others.size == 0 or row[label] > others[0])
        total["correct5"] += bool(others.size < 5 or row[label] > others[4])
    return total


@pytest.mark.parametrize("classes", [1, 2, 3, 5, 6, 10, 100])
def test_counts_are_those_of_a_sort(classes: int) -> None:
    g = torch.Generator().manual_seed(classes)
    logits = torch.randn(64, classes, generator=g) * 3
    labels = torch.randint(0, classes, (64,), generator=g)
    weight = (torch.rand(64, generator=g) > 0.3).float()
    want = by_numpy(logits, labels, weight)
    assert count(logits, labels, weight) == pytest.approx(want, rel=1e-5)
    assert 0 < want["total"] < 64
    if classes <= 5:
        assert want["correct5"] == want["total"]


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_rows_of_padding_count_for_nothing_whatever_they_hold(garbage: float) -> None:
    g = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 10, generator=g), torch.randint(0, 10, (8,), generator=g)
    weight = torch.tensor([1.0, 1, 1, 0, 1, 0, 0, 1])
    logits[weight == 0] = garbage
    labels[weight == 0] = 0
    assert count(logits, labels, weight) == pytest.approx(by_numpy(logits, labels, weight), rel=1e-5)


def test_a_tie_is_no_right_answer() -> None:
    labels, weight = torch.arange(10), torch.ones(10)
    tied = count(torch.zeros(10, 10), labels, weight)
    assert (tied["correct"], tied["correct5"], tied["total"]) == (0, 0, 10)
    ahead = torch.zeros(10, 10)
    ahead[:, :5] = 1.0  # five ahead of five, tied among themselves
    found = count(ahead, labels, weight)
    assert (found["correct"], found["correct5"]) == (0, 5)
    assert found == pytest.approx(by_numpy(ahead, labels, weight), rel=1e-6)


def test_a_row_that_is_not_a_number_is_a_wrong_answer() -> None:
    logits = torch.full((2, 10), float("nan"))
    found = count(logits, torch.tensor([0, 1]), torch.ones(2))
    assert (found["correct"], found["correct5"], found["total"]) == (0, 0, 2) and found["loss"] != found["loss"]


def test_counts_add_up_over_batches() -> None:
    g = torch.Generator().manual_seed(4)
    logits, labels = torch.randn(30, 10, generator=g), torch.randint(0, 10, (30,), generator=g)
    whole, m = count(logits, labels, torch.ones(30)), metrics.zero(RT)
    for rows in (slice(0, 7), slice(7, 30)):
        n = len(labels[rows])
        batch = DeviceBatch(torch.zeros(n, 1, 1, 1), labels[rows], torch.ones(n), torch.arange(n))
        m = metrics.count(RT, m, logits[rows], batch)
    assert {k: float(m[f"eval_{k}"]) for k in whole} == pytest.approx(whole, rel=1e-6)
