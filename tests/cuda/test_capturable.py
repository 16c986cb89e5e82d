"""The optimizers of a recorded step: the rate as a number on the device, against torch.optim's fused ones and float64."""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from vitcore.runtime import multi_tensor
from vitcore.runtime.hyper import Hyper
from vitcore.runtime.runtime import BoundGroup

SHAPES = [(7, 5), (5,), (3, 2, 2), (4,)]
GROUPS = (BoundGroup("all", 1.0, 1.0, (0, 2), ""), BoundGroup("plain", 0.5, 0.0, (1, 3), ""))
RT: Any = types.SimpleNamespace(groups=GROUPS)
VALUES = {"weight_decay": 0.1, "momentum": 0.9, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8}


def drawn(dtype: torch.dtype, seed: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g).to(dtype) for s in SHAPES]


def rates(step: int) -> float:
    return 1e-2 * (1 + step % 3)


def torchs(kind: str, dtype: torch.dtype, refused: set[int], steps: int, **how: Any) -> list[torch.Tensor]:
    """torch.optim on the same numbers; a step that is refused is one that is not made."""
    params = [p.requires_grad_() for p in drawn(dtype, 0)]
    groups: list[dict[str, Any]] = [{"params": [params[i] for i in g.indices]} for g in GROUPS]
    made = (
        torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8, **how)
        if kind == "adamw"
        else torch.optim.SGD(groups, lr=1.0, momentum=0.9, **how)
    )
    for step in range(steps):
        for settings, group in zip(made.param_groups, GROUPS, strict=True):
            settings["lr"], settings["weight_decay"] = rates(step) * group.lr, 0.1 * group.weight_decay
        for p, g in zip(params, drawn(dtype, step + 1), strict=True):
            p.grad = g
        if step not in refused:
            made.step()
    return [p.detach() for p in params]


def ours(kind: str, refused: set[int], steps: int) -> list[torch.Tensor]:
    params, zeros = drawn(torch.float32, 0), [torch.zeros(s) for s in SHAPES]
    slots = ("exp_avg", "exp_avg_sq") if kind == "adamw" else ("momentum",)
    state: dict[str, Any] = {slot: tuple(z.clone() for z in zeros) for slot in slots}
    state |= {"step": (torch.zeros(()),)} if kind == "adamw" else {}
    for step in range(steps):
        hyper = Hyper({**VALUES, "lr": rates(step)}, torch.device("cpu"))
        ok = torch.tensor(float(step not in refused))
        grads = drawn(torch.float32, step + 1)
        if step in refused:
            grads[0][0, 0] = torch.inf
        multi_tensor.torch_capturable(RT, tuple(params), state, grads, hyper, ok)
    return params


@pytest.mark.parametrize("refused", [set(), {0, 3}], ids=["all", "two refused"])
@pytest.mark.parametrize("kind", ["adamw", "sgdm"])
def test_the_update_is_torchs_fused_one(kind: str, refused: set[int]) -> None:
    found = ours(kind, refused, 6)
    for a, b in zip(found, torchs(kind, torch.float32, refused, 6, fused=True), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("kind", ["adamw", "sgdm"])
def test_it_is_as_near_to_float64_as_torchs(kind: str) -> None:
    exact = torchs(kind, torch.float64, set(), 12, foreach=False)

    def far(found: list[torch.Tensor]) -> float:
        return float(torch.cat([(f.double() - e).flatten() for f, e in zip(found, exact, strict=True)]).norm())

    assert far(ours(kind, set(), 12)) <= 2 * far(torchs(kind, torch.float32, set(), 12, fused=True)) + 1e-7
