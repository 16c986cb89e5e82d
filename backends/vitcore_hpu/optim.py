"""`opt.update` by the vendor's fused optimizers.

Both classes expect to own parameters, state and step count, and know no flag that refuses an update. So they are lent what
they need for one step: tensors of zeros in the parameters' place, into which they write the bare step, and our slots as their
state. The step is then applied where the flag is up. Gradients are masked to 0 where it is down, so nothing that is not finite
goes in; the slots' old values are kept beside them and come back. Beyond the bare kernel this costs one copy of each slot, one
tensor of zeros a parameter, and a pass over both; the device is never waited for.

The classes get one parameter group, not the recipe's: they flush around each group, and one number of flushes can be said
in the text whatever the groups are. A group's multiple of the learning rate scales its step; weight decay is computed here.
That also keeps what may change from step to step out of the op's attributes, where a new value is a new graph (bridge:
HF/hpex/optimizers/FusedSGD.py).

Only mul_, add_ and masked_fill apply results, as in the reference: a factor of 1 and a term of 0 keep a value's bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from habana_frameworks.torch.hpex.optimizers import FusedAdamW, FusedSGD
from torch import Tensor

from vitcore_hpu.state import SLOTS

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime

Params = tuple[Tensor, ...]
OptState = dict[str, tuple[Tensor, ...]]
Slots = dict[str, list[Tensor]]


def _stand_in() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.zeros(1))]


# One object of each class a process, which holds nothing of ours between steps. FusedSGD marks when it is made (bridge:
# HF/hpex/optimizers/FusedSGD.py), which would flush half a region: `vitcore_hpu.device` makes it when the card is opened.
# Every scalar is given: the classes' defaults differ from torch's (bridge: HF/hpex/optimizers/FusedAdamW.py).
@functools.cache
def sgd() -> Any:
    """The vendor's momentum SGD."""
    return FusedSGD(_stand_in(), lr=1.0, momentum=0.9, weight_decay=0.0, dampening=0.0, nesterov=False)


@functools.cache
def adamw() -> Any:
    """The vendor's AdamW. Its bias correction is off: it counts steps on the host, and ours that were refused do not count."""
    return FusedAdamW(_stand_in(), lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, bias_correction=False)


def _step(optimizer: Any, kind: str, grads: Sequence[Tensor], slots: Slots, options: dict[str, Any]) -> list[Tensor]:
    """The steps that the vendor's class takes from zeros; its state, which is our slots, is written in place."""
    steps = [torch.zeros_like(g) for g in grads]
    (group,) = optimizer.param_groups
    lent = group["params"]
    group.update(options, params=steps)
    try:
        for i, (step, grad) in enumerate(zip(steps, grads)):
            step.grad = grad
            optimizer.state[step] = {theirs: slots[ours][i] for ours, theirs in SLOTS[kind].items()}
        optimizer.step()
    finally:
        group["params"] = lent
        optimizer.state.clear()
    for step in steps:
        step.grad = None
    return steps


def _held(rt: Runtime, state: OptState, kind: str) -> Slots:
    """The slots of the parameters that are trained; the others have none."""
    return {slot: [state[slot][i] for i in rt.trained] for slot in SLOTS[kind]}


def _kept(slots: Slots) -> Slots:
    return {slot: [t.clone() for t in tensors] for slot, tensors in slots.items()}


def _restore(slots: Slots, old: Slots, ok: Tensor) -> None:
    """The slots' old values where the flag is down. All are finite, so a factor of 0 leaves nothing."""
    for slot, values in old.items():
        for new, before in zip(slots[slot], values):
            new.mul_(ok).add_(before.masked_fill(ok > 0, 0.0))


def _by_group(rt: Runtime, apply: Callable[[int, Any], None]) -> None:
    for group in rt.groups:
        for i in group.indices:
            apply(i, group)


@torch.no_grad()
def fused_sgd(
    rt: Runtime, params: Params, state: OptState, grads: list[Tensor], hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """Momentum SGD by FusedSGD: m = mu m + g + wd p, then p -= lr m, as torch.optim.SGD without dampening."""
    down, slots = ok <= 0, _held(rt, state, "sgdm")
    old, sums = _kept(slots), {i: grads[i].masked_fill(down, 0.0) for i in rt.trained}

    def decay(i: int, group: Any) -> None:
        if group.weight_decay:
            sums[i].add_((params[i] * hyper.tensor("weight_decay", group.weight_decay)).masked_fill(down, 0.0))

    _by_group(rt, decay)
    options = {"lr": hyper["lr"], "momentum": hyper["momentum"]}
    steps = dict(zip(rt.trained, _step(sgd(), "sgdm", [*sums.values()], slots, options)))
    if not hyper["momentum"]:  # without momentum the class keeps none (same file); the slot is then the gradient itself
        for slot, new in zip(slots["momentum"], sums.values()):
            slot.mul_(0.0).add_(new)
    _restore(slots, old, ok)

    def apply(i: int, group: Any) -> None:
        params[i].add_((steps[i] if group.lr == 1 else steps[i] * group.lr).masked_fill(down, 0.0))

    _by_group(rt, apply)
    return params, state


@torch.no_grad()
def fused_adamw(
    rt: Runtime, params: Params, state: OptState, grads: list[Tensor], hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """AdamW by FusedAdamW: its step, -lr m / (sqrt(v) + eps), times the bias correction of the updates that were accepted.

    So epsilon is added before the correction, which is the vendor's own order.
    """
    down, slots = ok <= 0, _held(rt, state, "adamw")
    old, mine = _kept(slots), [grads[i].masked_fill(down, 0.0) for i in rt.trained]
    options = {"lr": hyper["lr"], "betas": (hyper["beta1"], hyper["beta2"]), "eps": hyper["eps"]}
    steps = dict(zip(rt.trained, _step(adamw(), "adamw", mine, slots, options)))
    _restore(slots, old, ok)
    count = state["step"][0].add_(ok)
    one, two = 1 - torch.pow(hyper.tensor("beta1"), count), 1 - torch.pow(hyper.tensor("beta2"), count)
    correction = two.sqrt() / one  # 0/0 where the first update is refused, and then not used

    def apply(i: int, group: Any) -> None:
        step = steps[i] * correction
        if group.weight_decay:
            decay = hyper.tensor("lr", group.lr) * hyper.tensor("weight_decay", group.weight_decay)
            params[i].mul_((1 - decay) * ok + (1 - ok))
        params[i].add_((step if group.lr == 1 else step * group.lr).masked_fill(down, 0.0))

    _by_group(rt, apply)
    return params, state
