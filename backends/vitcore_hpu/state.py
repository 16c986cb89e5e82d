"""The vendor's optimizer state and ours, each way. A checkpoint holds ours: slots with neutral names, on the host.

The classes' `state_dict` is torch's in form: `state` by parameter number, `param_groups` with the scalars. They differ from
torch in one thing: FusedAdamW counts steps in its groups, and `step` in a parameter's state stays 0 (bridge:
HF/hpex/optimizers/FusedAdamW.py). A torch state that is loaded there as it is would begin its bias correction anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitcore.api import VitcoreError

if TYPE_CHECKING:
    from torch import Tensor

SLOTS = {"sgdm": {"momentum": "momentum_buffer"}, "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}}
"""For each kind of optimizer, our slots of one tensor a parameter, with the vendor's and torch's names."""

Slots = dict[str, tuple["Tensor", ...]]


def to_vendor(kind: str, slots: Mapping[str, Sequence[Tensor]], groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The state dict that `FusedSGD` or `FusedAdamW` loads; `groups` are its own `state_dict()["param_groups"]`. The state of
    sgdm is torch.optim.SGD's too."""
    names = _names(kind)
    state: dict[int, dict[str, Any]] = {
        i: {theirs: slots[ours][i] for ours, theirs in names.items()} for group in groups for i in group["params"]
    }
    if kind == "sgdm":
        return {"state": state, "param_groups": [dict(g) for g in groups]}
    count = int(slots["step"][0])
    for each in state.values():
        each["step"] = 0
    return {"state": state, "param_groups": [{**g, "step": count} for g in groups]}


def from_vendor(kind: str, saved: Mapping[str, Any]) -> Slots:
    """Our slots from a state dict of `FusedSGD`, `FusedAdamW`, torch.optim.SGD or torch.optim.AdamW."""
    import torch

    names, state = _names(kind), saved["state"]
    order = sorted(i for group in saved["param_groups"] for i in group["params"])
    found: Slots = {}
    for ours, theirs in names.items():
        for i in order:
            if state.get(i, {}).get(theirs) is None:
                raise VitcoreError(
                    f"the {kind} state has no {theirs!r} for parameter {i}: that optimizer had not made a step, or is of another "
                    "kind; save it after a step, or start with fresh state"
                )
            if f"{theirs}_scale" in state[i]:
                raise VitcoreError(
                    f"the {kind} state holds {theirs!r} of parameter {i} in 8 bits; save it from an optimizer made without "
                    "moments_dtype"
                )
        found[ours] = tuple(state[i][theirs].detach().to(torch.float32) for i in order)
    if kind == "adamw":
        found["step"] = (torch.tensor(float(_count(saved, order))),)
    return found


def _names(kind: str) -> Mapping[str, str]:
    if kind not in SLOTS:
        raise VitcoreError(f"no fused optimizer keeps state of kind {kind!r}; choose one of {', '.join(SLOTS)}")
    return SLOTS[kind]


def _count(saved: Mapping[str, Any], order: Sequence[int]) -> int:
    """How many updates were made: the groups' count where they have one, else that of torch's parameters."""
    groups = saved["param_groups"]
    counted = all("step" in g for g in groups)
    counts = {int(g["step"]) for g in groups} if counted else {int(saved["state"][i].get("step", 0)) for i in order}
    if len(counts) != 1 or not max(counts):
        raise VitcoreError(
            f"the adamw state counts {', '.join(map(str, sorted(counts)))} updates, where every parameter must have made the "
            "same number, at least 1; take the state of one whole run"
        )
    return counts.pop()
