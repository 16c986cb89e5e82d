"""The reference kernels compute the formulas: held against float64 and against torch.optim in float64."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rig import (
    HYPER,
    SEED,
    assert_same_bits,
    copy,
    digits,
    open_program,
    relative_error,
    run,
    shipped_kernels,
    spec,
)
from torch import Tensor

from vitcore.backend import Kernel, World
from vitcore.data.batch import Batch
from vitcore.runtime import multi_tensor
from vitcore.runtime.executable import Executable
from vitcore.runtime.hyper import Hyper
from vitcore.runtime.reference import REFERENCE, grads, optim
from vitcore.runtime.runtime import BoundGroup
from vitcore.step.ir import walk

CPU = torch.device("cpu")
SHAPES = [(7, 5), (5,), (3, 4, 2), (1,), (33,)]
GROUPS = (BoundGroup("a", 1.0, 1.0, (0, 2, 4), "sgdm"), BoundGroup("b", 3.0, 0.0, (1, 3), "sgdm"))
RULES = {"reference": optim.update, "torch_fused": multi_tensor.torch_fused}


def bundle(seed: int, scale: float = 1.0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=g) * scale for s in SHAPES]


def runtime(groups: tuple[BoundGroup, ...] = GROUPS, kind: str = "sgdm", **more: Any) -> Any:
    """What kernels ask of a runtime, where nothing is frozen."""
    names, all_of = [f"p{i}" for i in range(len(SHAPES))], tuple(range(len(SHAPES)))
    groups = tuple(replace(g, kind=kind) for g in groups)
    return SimpleNamespace(groups=groups, names=names, trained=all_of, bundle=list, device=CPU, world=World(), **more)


def kernels(name: str) -> tuple[Kernel, ...]:
    return REFERENCE if name == "reference" else shipped_kernels()


def in_float64(
    kind: str, groups: tuple[BoundGroup, ...], steps: int, betas: tuple[float, float] = (0.9, 0.999)
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """torch.optim on the same bundles in float64; the rate moves."""
    params = [torch.nn.Parameter(p.double()) for p in bundle(0)]
    sets = [{"params": [params[i] for i in g.indices], "weight_decay": HYPER["weight_decay"] * g.weight_decay}
            for g in groups]  # fmt: skip
    opt: torch.optim.Optimizer = (
        torch.optim.SGD(sets, lr=0.0, momentum=0.9, foreach=False)
        if kind == "sgdm"
        else torch.optim.AdamW(sets, lr=0.0, betas=betas, eps=1e-8, foreach=False)
    )
    for step in range(steps):
        for g, ours in zip(opt.param_groups, groups, strict=True):
            g["lr"] = 0.01 * (step + 1) * ours.lr
        for p, grad in zip(params, bundle(step + 1), strict=True):
            p.grad = grad.double()
        opt.step()
    names = {"sgdm": {"momentum": "momentum_buffer"}, "adamw": {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}}[kind]
    return [p.detach() for p in params], {
        ours: [opt.state[p][theirs] for p in params] for ours, theirs in names.items()
    }


@pytest.mark.parametrize(
    "groups", [GROUPS, (BoundGroup("all", 1.0, 1.0, (0, 1, 2, 3, 4), "sgdm"),)], ids=["two", "one"]
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
def test_an_optimizer_follows_torch_optim_in_float64(kind: str, rule: str, groups: tuple[BoundGroup, ...]) -> None:
    rt, params = runtime(groups, kind), tuple(bundle(0))
    state = optim.init(rt, params, kind)
    for step in range(6):
        hyper = Hyper({**HYPER, "lr": 0.01 * (step + 1)}, CPU)
        params, state = RULES[rule](rt, params, state, bundle(step + 1), hyper, torch.tensor(1.0))
    want, slots = in_float64(kind, groups, 6)
    assert relative_error(params, want) < 3e-7
    if rule == "reference":  # its betas are f32 on the device: 1 - beta2, and with it the slot, is another by 1.3e-5
        _, slots = in_float64(kind, groups, 6, (float(torch.tensor(0.9)), float(torch.tensor(0.999))))
    assert {*state} - {"step"} == {*slots}
    for slot, values in slots.items():
        assert relative_error(state[slot], values) < 3e-7
    if kind == "adamw":
        assert state["step"][0].item() == 6


def test_the_first_step_of_adamw_is_corrected_for_its_bias_and_decays_apart() -> None:
    rt, params, g = runtime(kind="adamw"), tuple(bundle(0)), bundle(1)
    before = copy(params)
    optim.update(rt, params, optim.init(rt, params, "adamw"), g, Hyper(HYPER, CPU), torch.tensor(1.0))
    for group in GROUPS:
        for i in group.indices:
            lr, p, d = 0.01 * group.lr, before[i].double(), g[i].double()
            want = p * (1 - lr * 0.05 * group.weight_decay) - lr * d / (d.abs() + 1e-8)
            torch.testing.assert_close(params[i].double(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
@pytest.mark.parametrize("first", [True, False])
def test_a_lowered_flag_keeps_every_bit_of_the_optimizer(kind: str, rule: str, first: bool) -> None:
    rt, params = runtime(kind=kind), tuple(bundle(0))
    state = optim.init(rt, params, kind)
    if not first:
        params, state = RULES[rule](rt, params, state, bundle(1), Hyper(HYPER, CPU), torch.tensor(1.0))
    before = copy((params, state))
    poison = [g.fill_(float("nan")) for g in bundle(2)]
    out = RULES[rule](rt, params, state, poison, Hyper(HYPER, CPU), torch.tensor(0.0))
    assert_same_bits(out, before)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("norm", [grads.norm, multi_tensor.norm_foreach])
def test_the_norm_is_that_of_float64(norm: Any, scale: float) -> None:
    g = bundle(3, scale)
    want = torch.cat([x.double().flatten() for x in g]).norm()
    assert float(norm(runtime(), g)) == pytest.approx(float(want), rel=3e-7)


@pytest.mark.parametrize("max_norm", [0.1, 1e9])
@pytest.mark.parametrize("clip", [grads.clip, multi_tensor.clip_foreach])
def test_clipping_is_the_stock_function(clip: Any, max_norm: float) -> None:
    mine, total = clip(runtime(), bundle(3), Hyper({"max_norm": max_norm}, CPU))
    stock = [torch.nn.Parameter(torch.zeros(s, dtype=torch.float64)) for s in SHAPES]
    for p, g in zip(stock, bundle(3), strict=True):
        p.grad = g.double()
    want = torch.nn.utils.clip_grad_norm_(stock, max_norm)
    assert float(total) == pytest.approx(float(want), rel=3e-7)
    assert relative_error(mine, [p.grad for p in stock if p.grad is not None]) < 3e-7
    if max_norm > 1:
        assert_same_bits(mine, bundle(3))


def test_gradients_add_scale_and_start_at_zero() -> None:
    rt, g, h = runtime(), bundle(4), bundle(5)
    zeros = grads.zero(rt, tuple(torch.nn.Parameter(x) for x in g))
    assert all(not z.requires_grad and not z.any() for z in zeros) and [z.shape for z in zeros] == [x.shape for x in g]
    assert_same_bits(grads.add(rt, copy(g), h), tuple(x + y for x, y in zip(g, h, strict=True)))
    assert_same_bits(grads.scale(rt, copy(g), by=1 / 3), tuple(x * (1 / 3) for x in g))
    assert grads.scale_identity(rt, g, by=1.0) is g and grads.all_reduce_identity(rt, g, group="dp") is g


def test_the_flat_reduction_gives_each_gradient_its_mean_in_its_shape() -> None:
    seen = []

    def reduce(flat: Tensor) -> None:
        seen.append(flat.numel())
        flat.mul_(3.0)  # as if three ranks had the same

    rt = runtime(all_reduce_sum=reduce)
    rt.world = World(3, 0)
    out = grads.all_reduce_flat(rt, bundle(6), group="dp")
    assert seen == [sum(x.numel() for x in bundle(6))]
    assert [x.shape for x in out] == [torch.Size(s) for s in SHAPES] and relative_error(out, bundle(6)) < 1e-7


# ---- in a program ----


class Poisoned:
    """Digits; the images of some micro-batches are not numbers, or so large that no norm is finite."""

    def __init__(self, bad: dict[int, float]) -> None:
        self.bad, self.feed, self.count = bad, digits(8), -1

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        batch, following = self.feed.next_train(cursor)
        self.count += 1
        times = self.bad.get(self.count, 1.0)
        return batch._replace(images=batch.images * times), following

    def close(self) -> None:
        self.feed.close()


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
@pytest.mark.parametrize("use", ["reference", "shipped"])
@pytest.mark.parametrize("clip", [True, False])
def test_a_step_that_is_not_finite_changes_no_bit_and_is_noted(use: str, optimizer: str, clip: bool) -> None:
    feed = Poisoned({3: float("nan"), 5: float("inf")})
    exe = open_program(spec(optimizer, clip=clip), kernels(use), feed=feed)
    state = run(exe, 3)
    before = copy(state[:2])
    state = exe.step(state, HYPER)
    assert_same_bits(copy(state[:2]), before)
    state = exe.step(state, HYPER)
    moved = any(not torch.equal(a, b) for a, b in zip(state[0], before[0], strict=True))
    assert moved and all(bool(p.isfinite().all()) for p in state[0])
    state = exe.step(exe.step(state, HYPER), HYPER)
    steps = [t[0].item() for s, t in state[1].items() if s == "step"]
    assert steps == ([5.0] if optimizer == "adamw" else [])
    state, report = exe.log(state)
    exe.close()
    assert (report["steps"], report["bad_steps"], report["first_bad_step"]) == (7, 2, 4)


def test_the_logged_loss_is_the_mean_over_micro_batches() -> None:
    exe = open_program(spec("sgdm", 4, clip=False), REFERENCE)
    state = exe.init(SEED)
    feed, want, cursor = digits(8, 4), [], 0
    with torch.no_grad():
        for _ in range(4):
            batch, cursor = feed.next_train(cursor)
            want.append(torch.nn.functional.cross_entropy(exe.rt.model(batch.images), batch.labels).item())
    state, report = exe.log(exe.step(state, HYPER))
    exe.close()
    feed.close()
    assert report["loss_n"] == 4 and report["loss"] / 4 == pytest.approx(sum(want) / 4, rel=1e-6)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_shipped_kernels_end_where_reference_kernels_do(optimizer: str) -> None:
    # A large eps: without one AdamW makes full steps of rounding errors, where the true gradient is zero.
    ends = []
    for use in ("reference", "shipped"):
        exe = open_program(spec(optimizer, 2), kernels(use))
        assert not _others(exe) if use == "reference" else _others(exe)
        ends.append([p.detach().clone() for p in run(exe, 8, eps=1e-3)[0]])
        exe.close()
    assert relative_error(ends[0], ends[1]) < 1e-6


def _others(exe: Executable) -> set[str]:
    """The implementations in the program that are not of the reference."""
    own = {(k.op, k.name) for k in REFERENCE}
    ops = [op for p in exe.module.programs for op in walk(p.ops) if "impl" in op.attrs]
    return {f"{op.name} {op.attrs['impl']}" for op in ops if (op.name, op.attrs["impl"]) not in own}
