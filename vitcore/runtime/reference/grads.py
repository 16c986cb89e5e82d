"""Kernels on bundles of gradients: a list of tensors, one per parameter, in the parameters' order.

Of a frozen parameter it is `rt.nothing`, an empty tensor, on which nothing need be done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime

Grads = list[Tensor]

# torch.nn.utils.clip_grad_norm_ adds this to the norm before it divides.
CLIP_EPS = 1e-6


def zero(rt: Runtime, params: tuple[Tensor, ...]) -> Grads:
    """Zeros shaped as the parameters."""
    return rt.bundle([torch.zeros_like(params[i], requires_grad=False) for i in rt.trained])


def given(grads: Grads) -> Grads:
    """Those of parameters that are trained."""
    return [g for g in grads if g.numel()]


def add(rt: Runtime, total: Grads, more: Grads) -> Grads:
    """The sum, written into `total`, which is donated."""
    for t, m in zip(given(total), given(more), strict=True):
        t.add_(m)
    return total


def scale_identity(rt: Runtime, grads: Grads, by: float) -> Grads:
    """A factor of 1: nothing to do."""
    return grads


def scale(rt: Runtime, grads: Grads, by: float) -> Grads:
    """Every gradient times `by`, in place."""
    for g in given(grads):
        g.mul_(by)
    return grads


def all_reduce_identity(rt: Runtime, grads: Grads, group: str) -> Grads:
    """One rank: its gradients are the mean."""
    return grads


def all_reduce_flat(rt: Runtime, grads: Grads, group: str) -> Grads:
    """The mean over ranks, as one flat buffer and one reduction: a sum, then a division (not every device averages)."""
    flat = torch.cat([g.reshape(-1) for g in grads])
    rt.all_reduce_sum(flat)
    flat.div_(rt.world.size)
    out, at = [], 0
    for g in grads:
        out.append(flat[at : at + g.numel()].view(g.shape))
        at += g.numel()
    return out


def norm(rt: Runtime, grads: Grads) -> Tensor:
    """The global L2 norm from sums of squares, a 0-d tensor."""
    return torch.stack([(g * g).sum() for g in given(grads)]).sum().sqrt()


def clip(rt: Runtime, grads: Grads, hyper: Hyper) -> tuple[Grads, Tensor]:
    """As torch.nn.utils.clip_grad_norm_: gradients times min(1, max_norm / (norm + 1e-6)); also the norm before."""
    total = norm(rt, grads)
    factor = torch.clamp(hyper.tensor("max_norm") / (total + CLIP_EPS), max=1.0)
    for g in given(grads):
        g.mul_(factor)
    return grads, total
