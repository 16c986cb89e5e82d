"""Optimizers as plain formulas on bundles. State is a dict of slots with neutral names.

A slot holds one tensor for each parameter that needs it, and None for every other: of a frozen parameter nothing is kept,
and of muon's matrices no moments. `step`, the number of updates that were made, is one 0-d tensor for all.

sgdm: `momentum` (m = mu m + g + wd p; p -= lr m: torch.optim.SGD, dampening 0).
adamw: `exp_avg`, `exp_avg_sq`, `step` (Loshchilov & Hutter 2019, as torch.optim.AdamW: decoupled decay, eps added after
the bias correction).
lamb: the same slots (You et al. 2020, arXiv 1904.00962, as timm.optim.Lamb: the bias correction is made, the gradients are
averaged, and only what is decayed has a trust ratio, which is not clipped).
lion: `momentum` (Chen et al. 2023, arXiv 2302.06675, as timm.optim.Lion: decoupled decay).
muon: `momentum` of the matrices of the blocks (`vitcore.runtime.reference.muon`), and the slots of adamw of all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vitcore.runtime.reference.masks import keep_if, masked
from vitcore.runtime.reference.muon import orthogonal

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import BoundGroup, Runtime

Params = tuple[Tensor, ...]
OptState = dict[str, tuple[Any, ...]]
"""Slots: a tensor, or None, for each parameter."""

# Slots with one tensor a parameter, of each kind of optimizer that a group of parameters can have.
PER_PARAMETER = {
    "sgdm": ("momentum",),
    "adamw": ("exp_avg", "exp_avg_sq"),
    "lamb": ("exp_avg", "exp_avg_sq"),
    "lion": ("momentum",),
    "muon": ("momentum",),
}
# Kinds that count their updates besides.
_COUNTED = ("adamw", "lamb")


def slots(groups: Sequence[BoundGroup]) -> dict[str, tuple[int, ...] | None]:
    """The slots that these groups need, each with the positions of its parameters; None where it is one tensor for all."""
    held: dict[str, list[int]] = {}
    for group in groups:
        for slot in PER_PARAMETER[group.kind]:
            held.setdefault(slot, []).extend(group.indices)
    found: dict[str, tuple[int, ...] | None] = {slot: tuple(sorted(held[slot])) for slot in sorted(held)}
    return {**found, "step": None} if any(group.kind in _COUNTED for group in groups) else found


def init(rt: Runtime, params: Params, kind: str) -> OptState:
    """Every slot, zeroed and made now, so that nothing appears at the first update."""
    state: OptState = {}
    for slot, where in slots(rt.groups).items():
        if where is None:
            state[slot] = (torch.zeros((), dtype=torch.float32, device=rt.device),)
        else:
            needed = frozenset(where)
            state[slot] = tuple(
                torch.zeros_like(p, requires_grad=False) if i in needed else None for i, p in enumerate(params)
            )
    return state


class _Step(NamedTuple):
    """What one update of a group's parameters knows besides them: scalars on the device, and what the host knows of it."""

    lr: Tensor
    decay: Tensor
    decays: bool
    hyper: Hyper
    ok: Tensor
    made: Tensor
    """Updates that were made, this one included; unused by kinds that do not count."""


@torch.no_grad()
def update(
    rt: Runtime, params: Params, state: OptState, grads: list[Tensor], hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """One step, each group by the rule of its kind; where `ok` is 0 everything keeps its old value. Parameters that are in
    no group are frozen."""
    count = state["step"][0].add_(ok) if "step" in state else ok
    for group in rt.groups:
        lr, decay = hyper.tensor("lr", group.lr), hyper.tensor("weight_decay", group.weight_decay)
        step, rule = _Step(lr, decay, group.weight_decay != 0, hyper, ok, count), _RULES[group.kind]
        for i in group.indices:
            rule(step, rt.names[i], params[i], grads[i], *(state[slot][i] for slot in PER_PARAMETER[group.kind]))
    return params, state


def _sgdm(step: _Step, name: str, p: Tensor, g: Tensor, momentum: Tensor) -> None:
    ok = step.ok
    momentum.mul_(keep_if(ok, step.hyper.tensor("momentum"))).add_(masked(g + p * step.decay, ok))
    p.sub_(masked(momentum * step.lr, ok))


def _moments(step: _Step, g: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Adam's moments with this gradient, and the square root of the second, corrected for its bias, plus eps."""
    ok, beta1, beta2 = step.ok, step.hyper.tensor("beta1"), step.hyper.tensor("beta2")
    first.mul_(keep_if(ok, beta1)).add_(masked(g * (1 - beta1), ok))
    second.mul_(keep_if(ok, beta2)).add_(masked(g * g * (1 - beta2), ok))
    # At step 0 (only when the first update is refused) the correction would be 0/0; the result is not kept then.
    return second.sqrt() / (1 - torch.pow(beta2, step.made)).sqrt() + step.hyper.tensor("eps")


def _adamw(step: _Step, name: str, p: Tensor, g: Tensor, first: Tensor, second: Tensor) -> None:
    ok, denominator = step.ok, _moments(step, g, first, second)
    p.mul_(keep_if(ok, 1 - step.lr * step.decay))
    p.sub_(masked(first / denominator * (step.lr / (1 - torch.pow(step.hyper.tensor("beta1"), step.made))), ok))


def _lamb(step: _Step, name: str, p: Tensor, g: Tensor, first: Tensor, second: Tensor) -> None:
    denominator = _moments(step, g, first, second)
    direction = first / (1 - torch.pow(step.hyper.tensor("beta1"), step.made)) / denominator
    rate = step.lr
    if step.decays:
        direction = direction + p * step.decay
        far, long = (p * p).sum().sqrt(), (direction * direction).sum().sqrt()
        # Of what is 0, or does not move, the ratio says nothing: it is 1.
        rate = rate * (far / long).masked_fill(far <= 0, 1.0).masked_fill(long <= 0, 1.0)
    p.sub_(masked(direction * rate, step.ok))


def _lion(step: _Step, name: str, p: Tensor, g: Tensor, momentum: Tensor) -> None:
    ok, beta1, beta2 = step.ok, step.hyper.tensor("beta1"), step.hyper.tensor("beta2")
    blend = momentum * beta1 + g * (1 - beta1)
    direction = (blend > 0).to(g.dtype) - (blend < 0).to(g.dtype)  # sign falls back on some recording devices
    p.mul_(keep_if(ok, 1 - step.lr * step.decay))
    p.sub_(masked(direction * step.lr, ok))
    momentum.mul_(keep_if(ok, beta2)).add_(masked(g * (1 - beta2), ok))


def _muon(step: _Step, name: str, p: Tensor, g: Tensor, momentum: Tensor) -> None:
    ok, mu = step.ok, step.hyper.tensor("momentum")
    momentum.mul_(keep_if(ok, mu)).add_(masked(g * (1 - mu), ok))
    direction = orthogonal(g * (1 - mu) + momentum * mu, name)
    p.mul_(keep_if(ok, 1 - step.lr * step.decay))
    p.sub_(masked(direction * step.lr, ok))


_RULES: dict[str, Callable[..., None]] = {
    "sgdm": _sgdm, "adamw": _adamw, "lamb": _lamb, "lion": _lion, "muon": _muon
}  # fmt: skip
