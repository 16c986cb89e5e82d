"""Optimizers as plain formulas on bundles. State is a dict of slots with neutral names, each a tuple of tensors.

sgdm: `momentum`, one a parameter (m = mu m + g + wd p; p -= lr m: torch.optim.SGD, dampening 0).
adamw: `exp_avg`, `exp_avg_sq`, one a parameter, and `step`, one 0-d tensor (Loshchilov & Hutter 2019, as
torch.optim.AdamW: decoupled decay, eps added after the bias correction).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime

Params = tuple[Tensor, ...]
OptState = dict[str, tuple[Tensor, ...]]

# Slots with one tensor a parameter; adamw has its step count besides.
PER_PARAMETER = {"sgdm": ("momentum",), "adamw": ("exp_avg", "exp_avg_sq")}


def init(rt: Runtime, params: Params, kind: str) -> OptState:
    """Every slot, zeroed and made now, so that nothing appears at the first update."""
    state: OptState = {
        slot: tuple(torch.zeros_like(p, requires_grad=False) for p in params) for slot in PER_PARAMETER[kind]
    }
    if kind == "adamw":
        state["step"] = (torch.zeros((), dtype=torch.float32, device=rt.device),)
    return state


@torch.no_grad()
def update(
    rt: Runtime, params: Params, state: OptState, grads: list[Tensor], hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """One step of the kind that the state is for; where `ok` is 0 everything keeps its old value."""
    rule = _adamw if "exp_avg" in state else _sgdm
    if "step" in state:
        state["step"][0].add_(ok)
    for group in rt.groups:
        lr, decay = hyper.tensor("lr", group.lr), hyper.tensor("weight_decay", group.weight_decay)
        for i in group.indices:
            rule(params[i], grads[i], {s: t[i] for s, t in state.items() if s != "step"}, state, lr, decay, hyper, ok)
    return params, state


# In place by mul_ and add_ alone: copy_ and where fall back on some recording devices. A refused update multiplies by 1 and
# adds 0; what it would have added is masked and not multiplied, as it may not be finite.


def _if(ok: Tensor, factor: Tensor) -> Tensor:
    """The factor, or 1 where `ok` is 0."""
    return factor * ok + (1 - ok)


def _masked(term: Tensor, ok: Tensor) -> Tensor:
    """The term, or 0 where `ok` is 0."""
    return term.masked_fill(ok <= 0, 0.0)


def _sgdm(
    p: Tensor, g: Tensor, slots: dict[str, Tensor], state: OptState, lr: Tensor, decay: Tensor, hyper: Hyper, ok: Tensor
) -> None:
    momentum = slots["momentum"]
    momentum.mul_(_if(ok, hyper.tensor("momentum"))).add_(_masked(g + p * decay, ok))
    p.sub_(_masked(momentum * lr, ok))


def _adamw(
    p: Tensor, g: Tensor, slots: dict[str, Tensor], state: OptState, lr: Tensor, decay: Tensor, hyper: Hyper, ok: Tensor
) -> None:
    beta1, beta2, step = hyper.tensor("beta1"), hyper.tensor("beta2"), state["step"][0]
    first, second = slots["exp_avg"], slots["exp_avg_sq"]
    first.mul_(_if(ok, beta1)).add_(_masked(g * (1 - beta1), ok))
    second.mul_(_if(ok, beta2)).add_(_masked(g * g * (1 - beta2), ok))
    # At step 0 (only when the first update is refused) the correction would be 0/0; the result is not kept then.
    denominator = second.sqrt() / (1 - torch.pow(beta2, step)).sqrt() + hyper.tensor("eps")
    p.mul_(_if(ok, 1 - lr * decay))
    p.sub_(_masked(first / denominator * (lr / (1 - torch.pow(beta1, step))), ok))
