"""Kernels of the accumulators: named 0-d f32 tensors on the device, read by the host in `metrics.read` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

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

# The slots that every rank holds alike, because the scalar that health.check sees is reduced already.
_REPLICATED = ("steps", "bad_steps", "first_bad_step")


def zero(rt: Runtime) -> Metrics:
    """Every accumulator at zero, so that none appears later."""
    # Copied and not made there: some recording devices compile a graph of nothing but constants each time anew.
    return {name: torch.zeros((), dtype=torch.float32).to(rt.device) for name in SLOTS}


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


def count(rt: Runtime, metrics: Metrics, logits: Tensor, batch: DeviceBatch) -> Metrics:
    """Count rows, right answers among the first and the first five, and the loss, each row by its weight.

    An answer is among the first k when at most k classes score as high as it, itself counted: a tie is no right answer,
    so that a model whose head is zero scores nothing rather than everything.
    """
    of_label = logits.gather(1, batch.labels.unsqueeze(1))
    rank = (logits >= of_label).sum(1)
    losses = -torch.log_softmax(logits, 1).gather(1, batch.labels.unsqueeze(1)).squeeze(1)
    metrics["eval_loss"].add_((losses.masked_fill(batch.weight <= 0, 0.0) * batch.weight).sum())
    metrics["eval_correct"].add_(((rank == 1) * batch.weight).sum())
    metrics["eval_correct5"].add_((((rank >= 1) & (rank <= 5)) * batch.weight).sum())
    metrics["eval_total"].add_(batch.weight.sum())
    return metrics


def all_reduce_identity(rt: Runtime, metrics: Metrics, group: str) -> Metrics:
    """One rank: its counts are all there are."""
    return metrics


def all_reduce_flat(rt: Runtime, metrics: Metrics, group: str) -> Metrics:
    """Sums over ranks, in one reduction."""
    flat = torch.stack([metrics[name] for name in SLOTS])
    rt.all_reduce_sum(flat)
    total = {name: flat[i] for i, name in enumerate(SLOTS)}
    return {n: t / rt.world.size if n in _REPLICATED else t for n, t in total.items()}


def read(rt: Runtime, metrics: Metrics) -> dict[str, float]:
    """Wait for the device and read every accumulator: the one host read."""
    return dict(zip(SLOTS, rt.read(torch.stack([metrics[name] for name in SLOTS])), strict=True))
