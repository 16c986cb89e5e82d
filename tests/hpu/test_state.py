"""Optimizer state between the vendor's form and ours, also torch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from standin import Gaudi
from torch import Tensor
from vitcore_hpu.state import SLOTS, from_vendor, to_vendor

from vitcore.errors import VitcoreError
from vitcore.runtime.reference.optim import PER_PARAMETER


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((2, 3), (4,), (1, 2, 2))]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator)
    return made


def split(params: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params[:1]}, {"params": params[1:], "lr": 0.5}]


def same(one: dict[str, tuple[Tensor, ...]], other: dict[str, tuple[Tensor, ...]]) -> None:
    assert one.keys() == other.keys()
    for slot, tensors in one.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, other[slot], strict=True)), slot


def test_the_slots_are_those_of_the_core() -> None:
    assert {kind: tuple(names) for kind, names in SLOTS.items()} == {kind: PER_PARAMETER[kind] for kind in SLOTS}


@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
def test_the_vendors_state_goes_both_ways_and_the_optimizer_goes_on_to_the_same_bits(
    kind: str, gaudi: Callable[..., Gaudi]
) -> None:
    gaudi(lazy=False)
    from habana_frameworks.torch.hpex.optimizers import FusedAdamW, FusedSGD  # the stand-in's

    def make(params: list[torch.nn.Parameter]) -> Any:
        return (
            FusedSGD(split(params), lr=0.1, momentum=0.9)
            if kind == "sgdm"
            else FusedAdamW(split(params), lr=0.1, eps=0.01)
        )

    ours = parameters()
    optimizer = make(ours)
    for _ in range(3):
        optimizer.step()
    saved = optimizer.state_dict()
    slots = from_vendor(kind, saved)
    if kind == "adamw":
        assert float(slots["step"][0]) == 3 and {s["step"] for s in saved["state"].values()} == {0}
    again = make([torch.nn.Parameter(p.detach().clone()) for p in ours])
    copied = {slot: tuple(t.clone() for t in tensors) for slot, tensors in slots.items()}
    again.load_state_dict(to_vendor(kind, copied, again.state_dict()["param_groups"]))
    same(from_vendor(kind, again.state_dict()), slots)
    for p, q in zip(ours, (q for g in again.param_groups for q in g["params"])):
        q.grad = p.grad
    optimizer.step()
    again.step()
    assert all(torch.equal(p, q) for p, q in zip(ours, (q for g in again.param_groups for q in g["params"])))


def test_torchs_own_state_is_read_and_that_of_sgd_is_written() -> None:
    ours = parameters()
    sgd = torch.optim.SGD(split(ours), lr=0.1, momentum=0.9)
    adamw = torch.optim.AdamW(split(ours), lr=0.1)
    for _ in range(2):
        sgd.step()
        adamw.step()
    slots = from_vendor("sgdm", sgd.state_dict())
    same(slots, {"momentum": tuple(sgd.state[p]["momentum_buffer"] for p in ours)})
    again = torch.optim.SGD(split(ours), lr=0.1, momentum=0.9)
    again.load_state_dict(to_vendor("sgdm", slots, again.state_dict()["param_groups"]))
    same(from_vendor("sgdm", again.state_dict()), slots)
    slots = from_vendor("adamw", adamw.state_dict())
    assert float(slots["step"][0]) == 2
    same({"exp_avg": slots["exp_avg"]}, {"exp_avg": tuple(adamw.state[p]["exp_avg"] for p in ours)})


def test_state_that_cannot_be_taken_over_is_refused_by_name() -> None:
    ours = parameters()
    fresh = torch.optim.SGD(ours, lr=0.1, momentum=0.9)
    with pytest.raises(VitcoreError, match=r"no 'momentum_buffer' for parameter 0: .*; save it after a step"):
        from_vendor("sgdm", fresh.state_dict())
    without = torch.optim.SGD(ours, lr=0.1)
    without.step()
    with pytest.raises(VitcoreError, match="no 'momentum_buffer'"):
        from_vendor("sgdm", without.state_dict())
    adamw = torch.optim.AdamW(split(ours), lr=0.1)
    adamw.step()
    saved = adamw.state_dict()
    with pytest.raises(VitcoreError, match="no fused optimizer keeps state of kind 'lamb'; choose one of sgdm, adamw"):
        from_vendor("lamb", saved)
    saved["state"][1]["exp_avg_scale"] = torch.ones(1)
    with pytest.raises(VitcoreError, match="'exp_avg' of parameter 1 in 8 bits"):
        from_vendor("adamw", saved)
    del saved["state"][1]["exp_avg_scale"]
    saved["state"][1]["step"] = torch.tensor(7.0)
    with pytest.raises(VitcoreError, match="counts 1, 7 updates, where every parameter must have made the same number"):
        from_vendor("adamw", saved)
    vendors = {**saved, "param_groups": [{**g, "step": 0} for g in saved["param_groups"]]}
    with pytest.raises(VitcoreError, match="counts 0 updates"):
        from_vendor("adamw", vendors)
