"""`metrics.count` against counts that share no idea with it: a sort by NumPy, scikit-learn's, torchmetrics' and float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

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


# ---- by class and by confidence ----


def details(logits: Tensor, labels: Tensor, weight: Tensor, batch: int = 1000) -> dict[str, Tensor]:
    """The accumulators of an evaluation with details, in batches of some rows."""
    rt: Any = SimpleNamespace(device=torch.device("cpu"), model=SimpleNamespace(num_classes=logits.shape[1]))
    held = metrics.zero(rt, details="confusion|bins")
    for rows in torch.arange(len(labels)).split(batch):
        x = DeviceBatch(torch.zeros(len(rows), 1, 1, 1), labels[rows], weight[rows], rows)
        held = metrics.count(rt, held, logits[rows], x, details="confusion|bins")
    return held


def drawn(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are right more often than not and surer than they should be, labels, and weights of 0 and 1."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (rows,), generator=g)
    logits = torch.randn(rows, classes, generator=g) * 2
    logits[torch.arange(rows), labels] += 3 * torch.rand(rows, generator=g)
    return logits, labels, (torch.rand(rows, generator=g) > 0.2).float()


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_confusions_are_those_of_scikit_learn(classes: int) -> None:
    logits, labels, weight = drawn(700, classes, classes)
    held, kept = details(logits, labels, weight, batch=64), weight > 0
    want = confusion_matrix(labels[kept], logits[kept].argmax(1), labels=range(classes))
    assert held["eval_confusion"].shape == (classes, classes + 1) and not held["eval_confusion"][:, -1].any()
    assert held["eval_confusion"][:, :-1].tolist() == want.tolist()
    assert float(held["eval_confusion"].diagonal().sum()) == float(held["eval_correct"]) > 20
    if classes > 5:
        share = top_k_accuracy_score(labels[kept], logits[kept], k=5, labels=range(classes))
        assert float(held["eval_correct5"] / held["eval_total"]) == pytest.approx(share)


@pytest.mark.parametrize("classes", [2, 3, 10, 100])
def test_bins_are_those_of_float64_and_the_calibration_error_that_of_torchmetrics(classes: int) -> None:
    logits, labels, weight = drawn(3000, classes, classes)
    images, confidences, right = details(logits, labels, weight, batch=500)["eval_bins"].double().numpy()
    probabilities = logits.double().softmax(1).numpy()[weight > 0]
    sure, answers = probabilities.max(1), probabilities.argmax(1) == labels.numpy()[weight > 0]
    place = np.ceil(sure * 15).astype(int) - 1
    for b in range(15):
        assert images[b] == (place == b).sum() and right[b] == answers[place == b].sum()
        assert confidences[b] == pytest.approx(sure[place == b].sum(), rel=1e-5)
    assert images.sum() == weight.sum() and (images > 0).sum() > 5
    error = np.abs(right - confidences).sum() / images.sum()
    theirs = multiclass_calibration_error(logits[weight > 0], labels[weight > 0], classes, n_bins=15, norm="l1")
    assert error == pytest.approx(float(theirs), abs=1e-5) and error > 0.01


def test_a_confidence_on_an_edge_belongs_to_the_bin_below_and_certainty_to_the_last() -> None:
    sure = torch.tensor([[200.0, 0.0], [0.0, 0.0]])  # 1, and 1/2, which is in the middle of the eighth
    images = details(sure, torch.tensor([0, 1]), torch.ones(2))["eval_bins"][0]
    assert images.nonzero().flatten().tolist() == [7, 14]
    fifths = details(torch.zeros(4, 5), torch.arange(4), torch.ones(4))["eval_bins"][0]  # 1/5 ends the third
    assert fifths[2:4].sum() == 4 == fifths.sum()


def test_rows_without_a_single_best_class_are_of_none_and_rows_without_numbers_in_no_bin() -> None:
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [float("nan")] * 3, [5.0, 5.0, 5.0]])
    held = details(logits, torch.tensor([0, 1, 1, 2]), torch.ones(4))
    assert held["eval_confusion"].tolist() == [[0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]]
    assert float(held["eval_confusion"].diagonal().sum()) == float(held["eval_correct"]) == 1
    assert held["eval_bins"][0].sum() == 3 and held["eval_bins"].isfinite().all()


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 3e38])
def test_padding_is_in_no_cell_and_no_bin_whatever_it_holds(garbage: float) -> None:
    logits, labels, weight = drawn(50, 4, 1)
    clean = details(logits[weight > 0], labels[weight > 0], weight[weight > 0])
    logits[weight == 0], labels[weight == 0] = garbage, 0
    held = details(logits, labels, weight)
    for name in ("eval_confusion", "eval_bins"):
        assert torch.allclose(held[name], clean[name], rtol=1e-6), name


def test_the_accumulators_of_an_evaluation_without_details_are_the_old_ones() -> None:
    assert tuple(metrics.zero(RT)) == metrics.SLOTS
    assert tuple(metrics.zero(SimpleNamespace(device="cpu", model=SimpleNamespace(num_classes=3)), "confusion|bins")) == (
        *metrics.SLOTS, "eval_confusion", "eval_bins")  # type: ignore[arg-type]  # fmt: skip


def test_reading_gives_back_floats_and_matrices_as_lists_in_one_read() -> None:
    logits, labels, weight = drawn(50, 4, 2)
    held, reads = details(logits, labels, weight), []
    rt: Any = SimpleNamespace(read=lambda flat: reads.append(len(flat)) or flat.tolist())
    report = metrics.read(rt, held)
    assert reads == [len(metrics.SLOTS) + 4 * 5 + 3 * 15]
    assert (
        report["eval_confusion"] == held["eval_confusion"].tolist()
        and report["eval_bins"] == held["eval_bins"].tolist()
    )
    assert {n: report[n] for n in metrics.SLOTS} == {n: float(held[n]) for n in metrics.SLOTS}


def test_ranks_are_summed_in_one_reduction_and_what_they_all_hold_is_not() -> None:
    held = [details(*drawn(50, 4, seed)) for seed in (3, 4)]
    for one in held:
        one["steps"] = torch.tensor(7.0)
    sizes: list[int] = []

    def all_reduce_sum(flat: Tensor) -> None:
        sizes.append(flat.numel())
        flat.add_(torch.cat([t.reshape(-1) for t in held[1].values()]))

    rt: Any = SimpleNamespace(all_reduce_sum=all_reduce_sum, world=SimpleNamespace(size=2))
    total = metrics.all_reduce_flat(rt, held[0], "dp")
    assert len(sizes) == 1 and float(total["steps"]) == 7
    for name in ("eval_confusion", "eval_bins", "eval_total"):
        assert torch.allclose(total[name], held[0][name] + held[1][name]) and total[name].shape == held[0][name].shape
