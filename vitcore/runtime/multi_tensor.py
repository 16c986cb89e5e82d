"""Kernels made of torch's multi-tensor functions, for backends whose device has them. Nothing claims them by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitcore.runtime.reference.grads import CLIP_EPS, Grads, given
from vitcore.runtime.reference.optim import OptState, Params

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime


def norm_foreach(rt: Runtime, grads: Grads) -> Tensor:
    """The global L2 norm, one norm a tensor and one over those: what torch.nn.utils.clip_grad_norm_ computes."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(given(grads))))


def clip_foreach(rt: Runtime, grads: Grads, hyper: Hyper) -> tuple[Grads, Tensor]:
    """torch.nn.utils.clip_grad_norm_ in two passes over the gradients, without a host read."""
    total = norm_foreach(rt, grads)
    torch._foreach_mul_(given(grads), torch.clamp(hyper["max_norm"] / (total + CLIP_EPS), max=1.0))
    return grads, total


@torch.no_grad()
def torch_fused(
    rt: Runtime, params: Params, state: OptState, grads: Grads, hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """torch.optim's fused SGD and AdamW, bit for bit; the flag goes in as their `found_inf`, which skips the update."""
    found_inf = 1 - ok
    adamw = "exp_avg" in state
    if adamw:
        state["step"][0].add_(ok)
    for group in rt.groups:
        if len(group.indices) == len(params):
            ps, gs, pick = list(params), grads, None
        else:
            pick = group.indices
            ps, gs = [params[i] for i in pick], [grads[i] for i in pick]

        def slot(name: str, pick: tuple[int, ...] | None = pick) -> list[Tensor]:
            return list(state[name]) if pick is None else [state[name][i] for i in pick]

        lr, decay = hyper["lr"] * group.lr, hyper["weight_decay"] * group.weight_decay
        if adamw:
            torch._fused_adamw_(
                ps, gs, slot("exp_avg"), slot("exp_avg_sq"), [], [state["step"][0]] * len(ps),
                lr=lr, beta1=hyper["beta1"], beta2=hyper["beta2"], weight_decay=decay, eps=hyper["eps"],
                amsgrad=False, maximize=False, grad_scale=None, found_inf=found_inf,
            )  # fmt: skip
        else:
            torch._fused_sgd_(
                ps, gs, slot("momentum"), weight_decay=decay, momentum=hyper["momentum"], lr=lr,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False, grad_scale=None,
                found_inf=found_inf,
            )  # fmt: skip
    return params, state
