"""The fused kernels against torch's optimizers and float64, on the stand-in; what they ask of the library, call by call."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from standin import Gaudi
from torch import Tensor

from vitcore.doctor.flushes import predicted
from vitcore.errors import VitcoreError
from vitcore.model.attention import attention
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Executable
from vitcore.runtime.hyper import Hyper
from vitcore.runtime.reference import REFERENCE
from vitcore.step.ir import Group
from vitcore.testing.problem import GROUPS, Subject, hyper, reference

Make = Callable[..., Gaudi]
MODES = pytest.mark.parametrize("lazy", [True, False], ids=["lazy", "eager"])


def subject(device: Gaudi, *off: str) -> Subject:
    backend = device.backend()
    kernels = [k for k in load_plugins().kernels(backend.name) if k.name not in off]
    return Subject(backend, (*kernels, *REFERENCE))


def opened(device: Gaudi, optimizer: str, *off: str, **how: Any) -> Executable:
    of = subject(device, *off)
    return of.open(of.spec(optimizer, how.pop("accumulation", 1)), **how)


def bundle(exe: Executable, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(p.shape, generator=generator) for p in exe.rt.own_params()]


def values(step: int) -> dict[str, float]:
    return hyper(step)


def group_of(exe: Executable) -> list[Any]:
    """Each parameter's group."""
    return [next(g for g in exe.rt.groups if i in g.indices) for i in range(len(exe.rt.names))]


def updates(exe: Executable, kernel: str, oks: Sequence[float], momentum: float | None = None) -> tuple[Any, Any]:
    """Parameters and state after an update for each flag; where it is down the gradients are not numbers."""
    kind = "adamw" if "exp_avg" in exe.init(0)[1] else "sgdm"
    params = opened_params(exe)  # copies: `init` writes into the model's own
    state = exe.rt.opt_init__reference(params, kind)
    for step, ok in enumerate(oks):
        grads = [g if ok else g * math.nan for g in bundle(exe, step)]
        h = values(step) | ({} if momentum is None else {"momentum": momentum})
        update = getattr(exe.rt, f"opt_update__{kernel}")
        params, state = update(params, state, grads, Hyper(h, exe.rt.device), torch.tensor(ok))
    return params, state


def near(have: Sequence[Tensor], want: Sequence[Tensor], tolerance: float = 2e-6) -> None:
    for h, w in zip(have, want, strict=True):
        torch.testing.assert_close(h.detach().double(), w.detach().double(), rtol=tolerance, atol=tolerance)


OKS = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]


@MODES
@pytest.mark.parametrize("momentum", [0.87, 0.0])
def test_fused_sgd_is_torchs_sgd_with_groups_moving_rates_and_refused_steps(
    gaudi: Make, lazy: bool, momentum: float
) -> None:
    exe = opened(gaudi(lazy=lazy), "sgdm")
    params, state = updates(exe, "fused_sgd", OKS, momentum)
    start = [p.clone() for p in opened_params(exe)]
    ours = [torch.nn.Parameter(p) for p in start]
    groups = group_of(exe)
    assert {g.name for g in groups} == {"no_decay", "all"}
    optimizer = torch.optim.SGD([{"params": [p]} for p in ours], lr=1.0, momentum=momentum)
    for step, ok in enumerate(OKS):
        if not ok:
            continue
        h = values(step)
        for p, g, of, group in zip(ours, bundle(exe, step), groups, optimizer.param_groups):
            p.grad = g
            group.update(lr=h["lr"] * of.lr, weight_decay=h["weight_decay"] * of.weight_decay)
        optimizer.step()
    near(params, ours)
    if momentum:
        near(state["momentum"], [optimizer.state[p]["momentum_buffer"] for p in ours])
    else:  # torch keeps none; the reference's slot is the last gradient, with its decay
        plain = updates(exe, "reference", OKS, momentum)
        near(state["momentum"], plain[1]["momentum"])
        near(params, plain[0])


def opened_params(exe: Executable) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return tuple(p.clone() for p in exe.init(0)[0])


@MODES
def test_fused_adamw_is_its_declared_formula_in_float64(gaudi: Make, lazy: bool) -> None:
    exe = opened(gaudi(lazy=lazy), "adamw")
    oks = [0.0, *OKS]  # the first is refused, where a correction would be 0/0
    params, state = updates(exe, "fused_adamw", oks)
    want = [p.double() for p in opened_params(exe)]
    first, second = ([torch.zeros_like(p) for p in want] for _ in range(2))
    count = 0
    for step, ok in enumerate(oks):
        if not ok:
            continue
        count, h = count + 1, values(step)
        size = math.sqrt(1 - h["beta2"] ** count) / (1 - h["beta1"] ** count)
        for i, (g, group) in enumerate(zip(bundle(exe, step), group_of(exe))):
            g, lr, decay = g.double(), h["lr"] * group.lr, h["weight_decay"] * group.weight_decay
            first[i] = h["beta1"] * first[i] + (1 - h["beta1"]) * g
            second[i] = h["beta2"] * second[i] + (1 - h["beta2"]) * g * g
            want[i] = want[i] * (1 - lr * decay) - lr * size * first[i] / (second[i].sqrt() + h["eps"])
    near(params, want, 5e-6)
    near(state["exp_avg"], first)
    near(state["exp_avg_sq"], second)
    assert float(state["step"][0]) == count == 4


@MODES
@pytest.mark.parametrize(("kernel", "optimizer"), [("fused_sgd", "sgdm"), ("fused_adamw", "adamw")])
def test_a_refused_update_keeps_every_bit(gaudi: Make, lazy: bool, kernel: str, optimizer: str) -> None:
    exe = opened(gaudi(lazy=lazy), optimizer)
    params, state = updates(exe, kernel, [1.0, 1.0])
    before = [t.clone() for t in (*params, *(t for slot in state.values() for t in slot))]
    grads = [g * math.inf for g in bundle(exe, 0)]
    update = getattr(exe.rt, f"opt_update__{kernel}")
    params, state = update(params, state, grads, Hyper(values(5), exe.rt.device), torch.tensor(0.0))
    after = [*params, *(t for slot in state.values() for t in slot)]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


@MODES
def test_the_optimizers_are_asked_with_every_scalar_and_hold_nothing_of_ours(gaudi: Make, lazy: bool) -> None:
    device = gaudi(lazy=lazy)
    exe = opened(device, "sgdm")
    updates(exe, "fused_sgd", [1.0, 1.0])
    assert device.called("FusedSGD") == [
        {"lr": 1.0, "momentum": 0.9, "weight_decay": 0.0, "dampening": 0.0, "nesterov": False}
    ]
    asked = device.called("FusedSGD.step")
    assert [a["lr"] for a in asked] == [values(0)["lr"], values(1)["lr"]]
    assert {(a["count"], a["momentum"], a["weight_decay"], a["dampening"]) for a in asked} == {
        (len(exe.rt.names), values(0)["momentum"], 0.0, 0.0)
    }
    adamw = opened(device, "adamw")
    _, state = updates(adamw, "fused_adamw", [1.0, 0.0, 1.0])
    (made,) = device.called("FusedAdamW")
    assert made.keys() == {"lr", "betas", "eps", "weight_decay", "bias_correction"} and made["bias_correction"] is False
    assert {a["betas"] for a in device.called("FusedAdamW.step")} == {(0.8, 0.9)}
    assert {(a["eps"], a["weight_decay"]) for a in device.called("FusedAdamW.step")} == {(values(0)["eps"], 0.0)}
    from vitcore_hpu import optim

    for held in (optim.sgd(), optim.adamw()):
        assert not held.state and [p.shape for g in held.param_groups for p in g["params"]] == [(1,)]
    slot = weakref.ref(state["exp_avg"][0])
    del state
    gc.collect()
    assert slot() is None


@MODES
def test_clipping_follows_a_bound_that_moves(gaudi: Make, lazy: bool) -> None:
    device = gaudi(lazy=lazy)
    exe = opened(device, "sgdm")
    for step, bound in enumerate([0.5, 0.5, 1e9, 0.5]):
        grads = bundle(exe, step)
        ours = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
        for p, g in zip(ours, grads):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(ours, bound)
        clipped, said = exe.rt.grads_clip__fused_clip_norm(grads, Hyper({"max_norm": bound}, exe.rt.device))
        near([*clipped, said], [*(p.grad for p in ours if p.grad is not None), norm])
        assert said.shape == () and clipped is grads
        assert all(p.grad is None for p in exe.rt.own_params())
    assert [c["max_norm"] for c in device.called("FusedClipNorm")] == [0.5, 1e9, 0.5]
    assert {c["count"] for c in device.called("FusedClipNorm.clip_norm")} == {len(exe.rt.names)}


@MODES
@pytest.mark.parametrize(("kernel", "optimizer"), [("fused_sgd", "sgdm"), ("fused_adamw", "adamw")])
def test_what_is_frozen_is_not_handed_to_the_library_and_the_others_do_not_notice(
    gaudi: Make, lazy: bool, kernel: str, optimizer: str
) -> None:
    device = gaudi(lazy=lazy)
    of = subject(device)
    whole = of.open(of.spec(optimizer))
    params, state = updates(whole, kernel, OKS)
    frozen = Group("frozen", r"^blocks\.1\.|^pos_embed", frozen=True)
    exe = of.open(replace(of.spec(optimizer), groups=(frozen, *GROUPS)))
    start, trained = opened_params(exe), {*exe.rt.trained}
    part, kept = updates(exe, kernel, OKS)
    assert len(exe.rt.names) - len(trained) == 13
    for i in range(len(exe.rt.names)):
        assert torch.equal(part[i], params[i] if i in trained else start[i]), exe.rt.names[i]
        for slot in kept.keys() - {"step"}:
            assert torch.equal(kept[slot][i], state[slot][i]) if i in trained else kept[slot][i] is None
    grads = exe.rt.bundle([g for i, g in enumerate(bundle(exe, 0)) if i in trained])
    clipped, norm = exe.rt.grads_clip__fused_clip_norm(grads, Hyper({"max_norm": 0.5}, exe.rt.device))
    near([norm], [torch.cat([g.flatten() for i, g in enumerate(bundle(exe, 0)) if i in trained]).norm()])
    assert len(clipped) == len(exe.rt.names)
    assert device.called("FusedClipNorm.clip_norm")[-1]["count"] == len(trained)


def test_fused_attention_is_asked_by_position_with_its_scale(gaudi: Make) -> None:
    device = gaudi(lazy=True)
    exe = opened(device, "sgdm")
    q, k, v = (torch.randn(2, 3, 5, 4, requires_grad=True) for _ in range(3))
    out = exe.rt.attention__fused_sdpa(q, k, v, p=0.0, site=0)
    want = attention(q, k, v)
    near([out], [want])
    weights = torch.randn(out.shape)
    near(torch.autograd.grad(out, (q, k, v), weights), torch.autograd.grad(want, (q, k, v), weights))
    assert device.called("FusedSDPA") == [{"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": 0.5,
                                           "softmax_mode": "None", "recompute_mode": None}]  # fmt: skip
    with pytest.raises(VitcoreError, match=r"attention dropout of 0\.1 .*--disable_kernel fused_sdpa"):
        exe.rt.attention__fused_sdpa(q, k, v, p=0.1, site=3)


# ---- whole programs ----


@pytest.mark.parametrize(
    ("lazy", "optimizer", "accumulation"),
    [(True, "sgdm", 1), (True, "sgdm", 2), (True, "adamw", 1), (True, "adamw", 2), (False, "sgdm", 1)],
)  # one compiled run is enough
def test_a_run_is_near_the_references_and_flushes_as_its_text_says(
    gaudi: Make, lazy: bool, optimizer: str, accumulation: int
) -> None:
    device = gaudi(lazy=lazy)
    of = subject(device)
    spec = of.spec(optimizer, accumulation)
    exe = of.open(spec, dropout=0.1, guard=lazy, poisoned=2)
    state = of.start(exe)
    from vitcore_hpu.optim import sgd

    sgd()  # as `vitcore_hpu.device` does when the card is opened
    say = predicted(exe.module["train"].ops)
    for step in range(4):
        before = device.marks
        state = exe.step(state, hyper(step))
        assert device.marks - before == say == ({1: 6, 2: 9}[accumulation] if lazy else 0)
    state = exe.eval(state, 1)
    plain = reference(of)
    other = plain.open(spec, dropout=0.1, poisoned=2)
    wanted = other.eval(plain.train(other, 4), 1)
    if optimizer == "sgdm":  # FusedAdamW computes another formula, which test_fused_adamw_... checks
        near(state[0], wanted[0], 5e-5)
    assert exe.log(state)[1]["bad_steps"] == 1
    assert bool(device.graphs) is not lazy
    exe.close()
    other.close()


def test_a_step_of_many_groups_flushes_as_often_as_one_of_one(gaudi: Make) -> None:
    device = gaudi(lazy=True)
    assert len(GROUPS) == 2
    of = subject(device)
    assert {k.name: k.flushes for k in of.kernels if k.op in ("opt.update", "grads.clip")} == {
        "fused_sgd": (0, 2, 0), "fused_adamw": (0, 2, 0), "fused_clip_norm": (1, 0, 1), "reference": (0, 0, 0),
    }  # fmt: skip
    eager = {k.name: k.flushes for k in load_plugins().kernels("hpu-eager")}
    assert set(eager.values()) == {(0, 0, 0)} and "compiled" in eager and "flat_hccl" not in eager


def test_reductions_over_ranks_are_the_references_and_say_that_they_flush(
    gaudi: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitcore.backend import World

    device = gaudi(lazy=True)
    of = subject(device)
    world = World(2)
    exe = of.open(of.spec("sgdm"), world=world)
    summed: list[int] = []
    monkeypatch.setattr(exe.rt, "all_reduce_sum", lambda flat: summed.append(flat.numel()) or flat.mul_(2))
    grads = bundle(exe, 0)
    near(exe.rt.grads_all_reduce__flat_hccl([g.clone() for g in grads], "dp"), grads)
    metrics = exe.rt.metrics_zero__reference()
    metrics["loss"].add_(3)
    assert float(exe.rt.metrics_all_reduce__flat_hccl(metrics, "dp")["loss"]) == 6.0 and len(summed) == 2
    text = str(exe.module["train"])
    assert "grads.all_reduce %gs {flushes=0/1/0, group=dp, impl=flat_hccl}" in text
    assert "flat_hccl" not in str(of.lowered(of.spec("sgdm"))["train"])
    exe.close()


def test_leaving_out_a_kernel_selects_the_reference(gaudi: Make) -> None:
    device = gaudi(lazy=True)
    for name, op in (
        ("fused_sdpa", "attention=fused_sdpa"),
        ("fused_clip_norm", "fused_clip_norm"),
        ("fused_sgd", "fused_sgd"),
    ):
        full, without = subject(device), subject(device, name)
        assert op in str(full.lowered(full.spec("sgdm"))) and op not in str(without.lowered(without.spec("sgdm")))
    assert "variant=adamw_eps_before_correction" in str(full.lowered(full.spec("adamw")))


# ---- the device ----


@MODES
def test_what_the_device_counts(gaudi: Make, lazy: bool) -> None:
    device = gaudi(lazy=lazy)
    exe = opened(device, "sgdm")
    stats = exe.stats()
    assert (stats.compiles, stats.fallbacks) == (3, 1) and device.called("synchronize")
    assert (stats.cache_hits, stats.flushes) == ((5, 8) if lazy else (0, exe.rt.counts.marks))
    counted = exe.rt.device_counters()
    assert ("flushes" in counted) is lazy and (
        "recipe_cache" in {c["name"] for c in device.called("metric_global")}
    ) is lazy
    exe.close()
