"""Kernels of the accumulators: named f32 tensors on the device, read by the host in `metrics.read` alone.

All are 0-d but the two that an evaluation with details has besides: `eval_confusion` and `eval_bins`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcore.runtime.reference.data import DeviceBatch

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime

Metrics = dict[str, Tensor]

# Every accumulator there is: sums over what was added, and how many there were. f32 counts exactly up to 2^24 images.
SLOTS = (
    "loss", "loss_n", "grad_norm", "grad_norm_n", "steps", "bad_steps", "first_bad_step",
    "eval_loss", "eval_correct", "eval_correct5", "eval_total",
)  # fmt: skip

# Equal parts of (0, 1] into which confidences are counted; "On Calibration of Modern Neural Networks" (arXiv 1706.04599)
# measures with 15.
BINS = 15

# The slots that every rank holds alike, because the scalar that health.check sees is reduced already.
_REPLICATED = ("steps", "bad_steps", "first_bad_step")


def zero(rt: Runtime, details: str = "") -> Metrics:
    """Every accumulator at zero, so that none appears later; with `details`, those of K classes too: `eval_confusion` of
    shape (K, K + 1) and `eval_bins` of shape (3, `BINS`)."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(SLOTS, ())
    if details:
        classes = rt.model.num_classes
        shapes |= {"eval_confusion": (classes, classes + 1), "eval_bins": (3, BINS)}
    # Copied and not made there: some recording devices compile a graph of nothing but constants each time anew.
    return {name: torch.zeros(shape, dtype=torch.float32).to(rt.device) for name, shape in shapes.items()}


def add(rt: Runtime, metrics: Metrics, value: Tensor, name: str) -> Metrics:
    """Add to the running mean called `name`."""
    metrics[name].add_(value)
    metrics[f"{name}_n"].add_(1)
    return metrics


def health_check(rt: Runtime, metrics: Metrics, value: Tensor) -> tuple[Metrics, Tensor]:
    """Count the step, note the first one whose `value` is not finite; the flag is 1.0 where it is finite, else 0.0."""
    ok = (value - value == 0).to(torch.float32)
    bad = 1 - ok
    metrics["steps"].add_(1)
    metrics["first_bad_step"].add_(bad * (metrics["bad_steps"] == 0) * metrics["steps"])
    metrics["bad_steps"].add_(bad)
    return metrics, ok


def count(rt: Runtime, metrics: Metrics, logits: Tensor, batch: DeviceBatch, details: str = "") -> Metrics:
    """Count rows, right answers among the first and the first five, and the loss, each row by its weight; with `details`
    the confusions and the confidences too.

    An answer is among the first k when at most k classes score as high as it, itself counted: a tie is no right answer,
    so that a model whose head is zero scores nothing rather than everything.
    """
    of_label = logits.gather(1, batch.labels.unsqueeze(1))
    rank = (logits >= of_label).sum(1)
    log_probabilities_BK = torch.log_softmax(logits, 1)
    losses = -log_probabilities_BK.gather(1, batch.labels.unsqueeze(1)).squeeze(1)
    metrics["eval_loss"].add_((losses.masked_fill(batch.weight <= 0, 0.0) * batch.weight).sum())
    metrics["eval_correct"].add_(((rank == 1) * batch.weight).sum())
    metrics["eval_correct5"].add_((((rank >= 1) & (rank <= 5)) * batch.weight).sum())
    metrics["eval_total"].add_(batch.weight.sum())
    if details:
        metrics["eval_confusion"].add_(_confusions(logits, batch))
        metrics["eval_bins"].add_(_confidences(log_probabilities_BK, rank == 1, batch.weight))
    return metrics


def _confusions(logits_BK: Tensor, batch: DeviceBatch) -> Tensor:
    """How many rows of each class (first axis) were taken for each class (second axis), of shape (K, K + 1).

    The last column has the rows of which no single class scored highest, a tie or not a number, so that the diagonal is
    the right answers and each line the pictures of a class. A product of two matrices of zeros and ones: argmax, one_hot
    and scatter leave the graph of some recording devices.
    """
    best_BK = (logits_BK >= logits_BK.max(1, keepdim=True).values).to(torch.float32)
    answers_BK = best_BK * (best_BK.sum(1, keepdim=True) == 1)
    none_B1 = 1 - answers_BK.sum(1, keepdim=True)
    # As in dropout, a running sum and no arange.
    ones_K = torch.ones(logits_BK.shape[1], dtype=batch.labels.dtype, device=logits_BK.device)
    of_class_BK = (batch.labels.unsqueeze(1) == ones_K.cumsum(0) - 1) * batch.weight.unsqueeze(1)
    return of_class_BK.t() @ torch.cat([answers_BK, none_B1], 1)


def _confidences(log_probabilities_BK: Tensor, right_B: Tensor, weight_B: Tensor) -> Tensor:
    """Rows, the sum of their confidences, and right answers, by confidence in `BINS` bins that are open below: (3, BINS).

    A row's confidence is its largest probability; a row that is not a number has none and is in no bin.
    """
    confidence_B = log_probabilities_BK.max(1).values.exp()
    none_B = (confidence_B != confidence_B) | (weight_B <= 0)
    confidence_B = confidence_B.masked_fill(none_B, 0.0)
    upper_N = torch.ones(BINS, dtype=torch.float32, device=weight_B.device).cumsum(0)
    place_B1 = (confidence_B * BINS).clamp(max=BINS).unsqueeze(1)
    in_bin_BN = ((place_B1 > upper_N - 1) & (place_B1 <= upper_N)) * weight_B.unsqueeze(1)
    return torch.stack([torch.ones_like(weight_B), confidence_B, right_B.to(torch.float32)]) @ in_bin_BN


def all_reduce_identity(rt: Runtime, metrics: Metrics, group: str) -> Metrics:
    """One rank: its counts are all there are."""
    return metrics


def all_reduce_flat(rt: Runtime, metrics: Metrics, group: str) -> Metrics:
    """Sums over ranks, in one reduction."""
    flat = _flat(metrics)
    rt.all_reduce_sum(flat)
    total, at = {}, 0
    for name, own in metrics.items():
        total[name] = flat[at : at + own.numel()].view(own.shape)
        at += own.numel()
    return {n: t / rt.world.size if n in _REPLICATED else t for n, t in total.items()}


def read(rt: Runtime, metrics: Metrics) -> dict[str, Any]:
    """Wait for the device and read every accumulator, the one host read: a float each, and of a matrix the list of its
    lines."""
    report: dict[str, Any] = {}
    numbers, at = rt.read(_flat(metrics)), 0
    for name, held in metrics.items():
        if held.ndim:
            of_line = held.shape[1]
            report[name] = [numbers[i : i + of_line] for i in range(at, at + held.numel(), of_line)]
        else:
            report[name] = numbers[at]
        at += held.numel()
    return report


def _flat(metrics: Metrics) -> Tensor:
    """The accumulators' numbers, one after the other."""
    scalars = torch.stack([held for held in metrics.values() if not held.ndim])
    matrices = [held.reshape(-1) for held in metrics.values() if held.ndim]  # after the scalars, as `zero` makes them
    return torch.cat([scalars, *matrices]) if matrices else scalars
