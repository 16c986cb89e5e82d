"""Kernels on the parameters as a bundle: the climb of sharpness-aware minimisation, and the exponential moving average."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitcore.runtime.reference.grads import Grads, norm
from vitcore.runtime.reference.masks import keep_if, masked

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime

Params = tuple[Tensor, ...]

# Keeps the direction finite where every gradient is 0, as in the paper's code.
_EPS = 1e-12


@torch.no_grad()
def ascend(rt: Runtime, params: Params, grads: Grads, hyper: Hyper) -> tuple[Params, Params]:
    """Fresh parameters, `rho` away along the gradients (arXiv 2010.01412, equation 2 with p = 2), and the old ones."""
    step, moved = hyper.tensor("rho") / (norm(rt, grads) + _EPS), list(params)
    for i in rt.trained:
        moved[i] = (params[i] + grads[i] * step).requires_grad_()
    return tuple(moved), params


def descend(rt: Runtime, moved: Params, kept: Params) -> Params:
    """The parameters that were kept: nothing was written to them, so they are the same to the last bit."""
    return kept


def narrow(rt: Runtime, params: Params) -> Params:
    """bf16 copies of the weights of the products (`vitcore.model.vit.computes_narrow`)."""
    return rt.narrow(params)


@torch.no_grad()
def average(rt: Runtime, params: Params) -> Params:
    """A copy of the parameters, the first value of their average."""
    return tuple(p.detach().clone() for p in params)


@torch.no_grad()
def update_average(rt: Runtime, ema: Params, params: Params, hyper: Hyper, ok: Tensor) -> Params:
    """e = keep e + (1 - keep) p, in place; the same as before where `ok` is 0."""
    keep = hyper.tensor("ema_keep")
    for i in rt.trained:  # of what is frozen it is the parameter already, to the last bit
        ema[i].mul_(keep_if(ok, keep)).add_(masked(params[i] * (1 - keep), ok))
    return ema
