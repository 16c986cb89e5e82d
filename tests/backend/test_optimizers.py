"""LAMB, Lion and Muon beside SGD and AdamW: against the libraries' own classes and float64; slots; whole runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rig import (
    assert_same_bits,
    checkpoint_of,
    config,
    contents,
    copy,
    open_program,
    relative_error,
    resume,
    spec,
    train,
)
from timm.optim import Lamb, Lion
from torch import Tensor

from vitcore.backend import World
from vitcore.errors import VitcoreError
from vitcore.groups import parameter_groups
from vitcore.plan import make_plan
from vitcore.runtime.hyper import Hyper
from vitcore.runtime.reference import muon, optim
from vitcore.runtime.runtime import BoundGroup
from vitcore.step.ir import Group

CPU = torch.device("cpu")
# Matrices of both aspects, a fused qkv, vectors.
SHAPES = {
    "blocks.0.attn.qkv.weight": (18, 6), "blocks.0.mlp.fc1.weight": (12, 6), "blocks.0.mlp.fc2.weight": (6, 12),
    "blocks.0.mlp.fc2.bias": (6,), "cls_token": (1, 1, 6), "head.weight": (4, 6),
}  # fmt: skip
NAMES = [*SHAPES]
HYPER = {"weight_decay": 0.05, "momentum": 0.95, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6}
STEPS = 20


def f32(value: float) -> float:
    """A scalar as the device is given it."""
    return float(torch.tensor(value, dtype=torch.float32))


def rate(step: int) -> float:
    return 0.01 * (1 + step % 7)


def bundle(seed: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g) for s in SHAPES.values()]


def groups_of(kind: str) -> tuple[BoundGroup, ...]:
    """A decayed group, one with three times the rate, one that is not decayed; of muon the matrices and the others."""
    rest = "adamw" if kind == "muon" else kind
    return (BoundGroup("a", 1.0, 1.0, (0, 2), kind), BoundGroup("b", 3.0, 0.5, (1,), kind),
            BoundGroup("c", 1.0, 0.0, (3, 4), rest), BoundGroup("d", 0.5, 1.0, (5,), rest))  # fmt: skip


def runtime(kind: str) -> Any:
    return SimpleNamespace(
        groups=groups_of(kind), names=NAMES, trained=tuple(range(len(NAMES))), bundle=list, device=CPU, world=World()
    )


def updated(kind: str, steps: int = STEPS) -> tuple[tuple[Tensor, ...], optim.OptState]:
    """Parameters and state after some steps; the rate moves."""
    rt, params = runtime(kind), tuple(bundle(0))
    state = optim.init(rt, params, kind)
    for step in range(steps):
        params, state = optim.update(
            rt, params, state, bundle(step + 1), Hyper({**HYPER, "lr": rate(step)}, CPU), torch.tensor(1.0)
        )
    return params, state


def by_library(
    kind: str, make: Callable[[list[dict[str, Any]]], torch.optim.Optimizer], which: str | None = None
) -> tuple[list[Tensor], dict[int, Any]]:
    """A library's optimizer on the same bundles in float64, for the groups of one kind; the others stay."""
    params = [torch.nn.Parameter(p.double()) for p in bundle(0)]
    mine = [g for g in groups_of(kind) if which in (None, g.kind)]
    sets = [
        {"params": [params[i] for i in g.indices], "weight_decay": f32(HYPER["weight_decay"] * g.weight_decay)}
        for g in mine
    ]
    opt = make(sets)
    for step in range(STEPS):
        for held, group in zip(opt.param_groups, mine, strict=True):
            held["lr"] = f32(rate(step) * group.lr)
        for p, g in zip(params, bundle(step + 1), strict=True):
            p.grad = g.double()
        opt.step()
    return [p.detach() for p in params], {i: opt.state[p] for i, p in enumerate(params) if p in opt.state}


BETAS = (f32(0.9), f32(0.98))
LIBRARIES: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "sgdm": lambda sets: torch.optim.SGD(sets, lr=0.0, momentum=f32(0.95)),
    "adamw": lambda sets: torch.optim.AdamW(sets, lr=0.0, betas=BETAS, eps=f32(1e-6)),
    "lamb": lambda sets: Lamb(sets, lr=0.0, betas=BETAS, eps=f32(1e-6), max_grad_norm=None),
    "lion": lambda sets: Lion(sets, lr=0.0, betas=BETAS),
}
SLOTS = {"sgdm": {"momentum": "momentum_buffer"}, "lion": {"momentum": "exp_avg"}}


@pytest.mark.parametrize("kind", LIBRARIES)
def test_twenty_steps_are_the_librarys_in_float64(kind: str) -> None:
    params, state = updated(kind)
    want, held = by_library(kind, LIBRARIES[kind])
    assert relative_error(params, want) < 1e-6
    assert relative_error(want, bundle(0)) > 0.1  # they did move
    for ours, theirs in SLOTS.get(kind, {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}).items():
        assert relative_error(state[ours], [held[i][theirs] for i in range(len(NAMES))]) < 1e-6


def muon64(step_of: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Muon's matrices written out in float64, with the directions that `step_of` makes of a matrix."""
    params, momenta = [p.double() for p in bundle(0)], [torch.zeros_like(p).double() for p in bundle(0)]
    mu = f32(HYPER["momentum"])
    for step in range(STEPS):
        grads = [g.double() for g in bundle(step + 1)]
        for group in groups_of("muon")[:2]:
            lr, decay = f32(rate(step) * group.lr), f32(HYPER["weight_decay"] * group.weight_decay)
            for i in group.indices:
                momenta[i] = mu * momenta[i] + (1 - mu) * grads[i]
                blend = mu * momenta[i] + (1 - mu) * grads[i]
                # q, k and v each for itself.
                thirds = blend.chunk(3) if "qkv" in NAMES[i] else (blend,)
                step_i = torch.cat([step_of(m) * 0.2 * max(m.shape) ** 0.5 for m in thirds])
                params[i] = params[i] * (1 - lr * decay) - lr * step_i
    return params


def newton_schulz64(matrix: Tensor) -> Tensor:
    """The quintic of Jordan's post, five times, on the singular values: an odd polynomial acts on those alone."""
    u, s, v = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ torch.diag(s) @ v


def test_muons_matrices_follow_the_singular_values_in_float64_and_the_others_adamw() -> None:
    params, state = updated("muon")
    want = muon64(newton_schulz64)
    assert relative_error(params[:3], want[:3]) < 2e-6
    others, held = by_library("muon", LIBRARIES["adamw"], "adamw")
    assert relative_error(params[3:], others[3:]) < 1e-6
    assert relative_error(state["exp_avg"][3:], [held[i]["exp_avg"] for i in (3, 4, 5)]) < 1e-6
    assert state["step"][0].item() == STEPS


def test_muon_is_torchs_up_to_its_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch multiplies in bf16: two decimals. It takes a matrix as one, so here qkv is too."""
    make = lambda sets: torch.optim.Muon(  # noqa: E731
        sets, lr=0.0, momentum=f32(0.95), nesterov=True, ns_steps=5, adjust_lr_fn="match_rms_adamw"
    )
    monkeypatch.setattr(optim, "orthogonal", lambda m, name: muon.orthogonal(m, "one"))
    params, _ = updated("muon")
    want, _ = by_library("muon", make, "muon")
    assert relative_error(params[:3], want[:3]) < 1e-2 < relative_error(want[:3], bundle(0)[:3])


def test_the_thirds_of_qkv_are_near_orthogonal_each_for_itself() -> None:
    qkv = torch.randn(96, 32, generator=torch.Generator().manual_seed(3))
    made = muon.orthogonal(qkv, "blocks.0.attn.qkv.weight") / (0.2 * 32**0.5)
    for third in made.chunk(3):
        sizes = torch.linalg.svdvals(third)  # five steps do not lift one that is nearly 0
        assert float(sizes.max()) < 1.3 and float(sizes[-2]) > 0.6 and float(sizes.median()) > 0.7
    assert not torch.allclose(made, muon.orthogonal(qkv, "other") / (0.2 * 96**0.5), atol=0.1)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4)])
def test_muons_direction_of_nothing_is_nothing(shape: tuple[int, int]) -> None:
    assert not muon.orthogonal(torch.zeros(shape), "fc").any()


@pytest.mark.parametrize("decayed", [True, False])
def test_lamb_takes_a_ratio_of_one_where_the_parameter_or_its_step_is_zero(decayed: bool) -> None:
    """As timm's: a head of zeros starts to move, and a parameter without a gradient stays finite."""
    rt = runtime("lamb")
    rt.groups = (BoundGroup("all", 1.0, float(decayed), tuple(range(len(NAMES))), "lamb"),)
    params = tuple(torch.zeros_like(p) if i % 2 else p for i, p in enumerate(bundle(0)))
    grads = [g * (i < 4) for i, g in enumerate(bundle(1))]
    before = copy(params)
    hyper = Hyper({**HYPER, "lr": 0.01, "weight_decay": 0.0}, CPU)
    params, _ = optim.update(rt, params, optim.init(rt, params, "lamb"), grads, hyper, torch.tensor(1.0))
    assert all(bool(p.isfinite().all()) for p in params)
    assert [not torch.equal(p, b) for p, b in zip(params, before)] == [True, True, True, True, False, False]
    moved = params[1] - before[1]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-3, atol=0)  # Adam's first step


@pytest.mark.parametrize("kind", ["lamb", "lion", "muon"])
@pytest.mark.parametrize("first", [True, False])
def test_a_lowered_flag_keeps_every_bit(kind: str, first: bool) -> None:
    rt, params = runtime(kind), tuple(bundle(0))
    state = optim.init(rt, params, kind) if first else None
    if state is None:
        params, state = updated(kind, 2)
    before = copy((params, state))
    for poison in (float("nan"), float("inf")):
        grads = [g.mul_(poison) for g in bundle(9)]
        out = optim.update(rt, params, state, grads, Hyper({**HYPER, "lr": 0.1}, CPU), torch.tensor(0.0))
        assert_same_bits(out, before)


# ---- slots ----


def of_kind(kind: str, freeze: str | None = None, **more: Any) -> Any:
    groups = parameter_groups(kind, freeze=freeze, undecayed=r"bias$|norm", layer_decay=1.0, depth=2)
    return spec(kind, groups=groups, **more)


def test_muon_keeps_of_each_parameter_what_its_kind_needs_and_no_more() -> None:
    exe = open_program(of_kind("muon"))
    slots = exe.init(7)[1]
    kept = {
        slot: {n for n, t in zip(exe.rt.names, some) if t is not None} for slot, some in slots.items() if slot != "step"
    }
    exe.close()
    assert kept["momentum"] == {
        n for n in exe.rt.names if n.startswith("blocks") and n.endswith("weight") and "norm" not in n
    }
    assert kept["exp_avg"] == kept["exp_avg_sq"] == {*exe.rt.names} - kept["momentum"] and slots["step"][0].shape == ()


@pytest.mark.parametrize("kind", ["lamb", "lion", "muon"])
@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-lazy", "hpu-eager"])
def test_fused_kernels_refuse_kinds_that_they_lack_and_say_so(kind: str, backend: str, tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, optimizer=kind, backend=backend), to_run=False)
    update = next(line for line in plan.show("lowered").splitlines() if "opt.update" in line)
    assert "impl=reference" in update and f"opt<{kind}>" in update
    said = [line for line in plan.lowering.refusals if line.startswith("@train opt.update: ")]
    assert said and all(f" of {kind} " in line or "is not of kind" in line for line in said), plan.lowering.refusals


def test_a_group_of_a_kind_that_its_optimizer_has_no_part_of_is_refused() -> None:
    with pytest.raises(
        VitcoreError, match="parameter group 'odd' is of kind 'lion', which is no part of adamw; name one"
    ):
        open_program(spec("adamw", groups=(Group("odd", kind="lion"),)))


# ---- whole runs ----


RUNS: dict[str, dict[str, Any]] = {
    "lamb": {"optimizer": "lamb", "decay_norms_and_biases": False},
    "lion": {"optimizer": "lion", "learning_rate": 3e-4, "beta2": 0.99, "layer_decay": 0.8},
    "muon": {"optimizer": "muon", "decay_norms_and_biases": False, "layer_decay": 0.8},
    "muon, frozen": {"optimizer": "muon", "freeze": r"^blocks\.0\.|^patch_embed", "ema": 0.9},
}


@pytest.mark.parametrize("which", RUNS)
def test_a_run_that_is_cut_ends_in_the_same_bits(which: str, tmp_path: Path) -> None:
    settings = {"num_steps": 8, "warmup_steps": 2, "eval_every": 0, "train_batch_size": 16, **RUNS[which]}
    whole, cut = config(tmp_path / "whole", **settings), config(tmp_path / "cut", **settings)
    train(whole)
    assert train(cut, stop_at=5).steps == 5
    resume(cut)
    one, other = checkpoint_of(whole, 8), checkpoint_of(cut, 8)
    assert (one / "state.safetensors").read_bytes() == (other / "state.safetensors").read_bytes()
    tensors = contents(one)[0]
    assert ("opt/step" in tensors) == (settings["optimizer"] != "lion")
    assert ("opt/momentum/head.weight" in tensors) == (settings["optimizer"] == "lion")


def test_a_checkpoint_of_other_slots_is_refused_by_name(tmp_path: Path) -> None:
    settings = config(tmp_path, num_steps=2, eval_every=0, train_batch_size=16, optimizer="muon")
    train(settings)
    with pytest.raises(VitcoreError, match=r"it is of .*, muon, not of this model and optimizer: 'opt/"):
        resume(replace(settings, num_steps=4), freeze=r"^blocks\.0\.")


@pytest.mark.parametrize(("kind", "base"), [("lamb", 0.004), ("lion", 0.0003), ("muon", 0.003)])
def test_each_learns_digits(kind: str, base: float) -> None:
    """Sixty steps at a constant rate: a fifth is right, where chance has a tenth."""
    exe = open_program(of_kind(kind), micro_batch=32)
    state = exe.init(7)
    for _ in range(60):
        state = exe.step(state, {**HYPER, "lr": base, "weight_decay": 0.01, "max_norm": 1.0})
    assert exe.rt.feed is not None
    state = exe.eval(exe.log(state)[0], exe.rt.feed.eval_steps)
    report = exe.log(state)[1]
    exe.close()
    assert report["eval_correct"] / report["eval_total"] > 0.2, report
