"""What is frozen keeps every bit, has no gradient, no slot and no part in the norm; nothing is computed for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rig import (
    HYPER,
    SEED,
    assert_same_bits,
    checkpoint_of,
    config,
    contents,
    copy,
    digits,
    open_program,
    run,
    shipped_kernels,
    spec,
    train,
)
from test_reference_kernels import Poisoned
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.backend import Kernel
from vitcore.errors import VitcoreError
from vitcore.runtime.executable import Executable
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import OPTIMIZERS
from vitcore.step.ir import Group

MORE = {**HYPER, "ema_keep": 0.8, "rho": 0.3}
HEAD = r"^(?!head\.)"
BLOCK = r"^blocks\.0\.|^pos_embed"


def frozen(pattern: str, kind: str = "adamw", **more: Any) -> Any:
    rest = (Group("matrices", r"^blocks\.\d+\.(attn|mlp)\.\w+\.weight$", kind="muon"), Group("rest", kind="adamw"))
    groups = (Group("frozen", pattern, frozen=True), *(rest if kind == "muon" else (Group("all", lr=1.5),)))
    return spec(kind, groups=groups, **more)


def kernels(use: str) -> tuple[Kernel, ...]:
    return REFERENCE if use == "reference" else shipped_kernels()


def trained_names(exe: Executable) -> set[str]:
    return {exe.rt.names[i] for i in exe.rt.trained}


@pytest.mark.parametrize("use", ["reference", "shipped"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_what_is_frozen_keeps_every_bit_and_all_else_moves(kind: str, use: str, accumulation: int) -> None:
    exe = open_program(frozen(BLOCK, kind, accumulation=accumulation), kernels(use))
    state = exe.init(SEED)
    before = copy(state[0])
    state = exe.step(exe.step(state, MORE), {**MORE, "lr": 0.005})  # the second has a head that is not zero
    same = {n for n, a, b in zip(exe.rt.names, state[0], before) if torch.equal(a, b)}
    assert same == {n for n in exe.rt.names if n.startswith("blocks.0.") or n == "pos_embed"} and len(same) == 13
    for slot, some in state[1].items():
        if slot != "step":
            held = {n for n, t in zip(exe.rt.names, some) if t is not None}
            assert held and held <= trained_names(exe), slot
    exe.close()


@pytest.mark.parametrize("use", ["reference", "shipped"])
@pytest.mark.parametrize("kind", ["sgdm", "adamw"])
def test_the_trained_move_as_if_the_others_had_no_gradient(use: str, kind: str) -> None:
    """Against torch's own: clipped by the norm of what is trained alone."""
    exe = open_program(frozen(HEAD, kind), kernels(use))
    state = exe.init(SEED)
    at = [exe.rt.names.index("head.bias"), exe.rt.names.index("head.weight")]
    head = [torch.nn.Parameter(state[0][i].detach().clone()) for i in at]
    lr = HYPER["lr"] * 1.5
    opt: torch.optim.Optimizer = (
        torch.optim.SGD(head, lr=lr, momentum=0.9, weight_decay=0.05)
        if kind == "sgdm"
        else torch.optim.AdamW(head, lr=lr, weight_decay=0.05, eps=1e-8)
    )
    feed, cursor = digits(8), 0
    for _ in range(4):
        batch, cursor = feed.next_train(cursor)
        features = headless(exe, batch.images)
        loss = torch.nn.functional.cross_entropy(torch.nn.functional.linear(features, head[1], head[0]), batch.labels)
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head, HYPER["max_norm"])
        opt.step()
        state = exe.step(state, HYPER)
    feed.close()
    exe.close()
    for i, want in zip(at, head):
        torch.testing.assert_close(state[0][i], want, rtol=1e-5, atol=1e-6)


def headless(exe: Executable, images: Tensor) -> Tensor:
    """What the head reads."""
    head, exe.rt.model.head = exe.rt.model.head, None
    with torch.no_grad():
        features: Tensor = exe.rt.model(images)
    exe.rt.model.head = head
    return features


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "convolution_backward"):
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def backward_products(step: Any) -> tuple[int, list[Tensor], Executable]:
    """Matrix products in the backward of one micro-batch, and the gradients."""
    exe = open_program(step, guard=False)
    params, _, cursor, key = exe.init(SEED)[:4]
    batch = exe.rt.data_put__reference(exe.rt.data_next__reference(cursor)[0])  # type: ignore[attr-defined]
    with Products() as forward:
        _, tape = exe.rt.model_forward__autograd(params, batch, key)  # type: ignore[attr-defined]
    assert forward.seen
    with Products() as products:
        grads = exe.rt.model_backward__autograd(tape)  # type: ignore[attr-defined]
    exe.close()
    return sum(products.seen.values()), grads, exe


def test_a_frozen_backbone_costs_its_backward_one_product() -> None:
    """That of the head's weight: not even the gradient of what the head reads is computed."""
    count, grads, exe = backward_products(frozen(HEAD))
    assert count == 1
    assert {n for n, g in zip(exe.rt.names, grads) if g.numel()} == {"head.weight", "head.bias"}
    assert len(grads) == len(exe.rt.names)


def test_frozen_blocks_have_no_products_for_their_weights() -> None:
    """Each of the four matrices of a block has one product in the backward for itself and one for what comes before."""
    whole, grads, exe = backward_products(spec("adamw"))
    blocks = len(exe.rt.model.blocks)
    part, others, _ = backward_products(frozen(r"^blocks\."))
    assert whole - part == 4 * blocks
    kept = [(a, b) for a, b in zip(grads, others) if b.numel()]
    assert len(kept) == 8
    for a, b in kept:
        assert torch.equal(a, b)  # the gradients that are left are the same bits


def test_nothing_is_reduced_or_zeroed_for_what_is_frozen() -> None:
    exe = open_program(frozen(HEAD))
    state, sizes = exe.init(SEED), []
    exe.rt.world = type(exe.rt.world)(2, 0)
    exe.rt.all_reduce_sum = lambda flat: sizes.append(flat.numel())  # type: ignore[method-assign]
    from vitcore.runtime.reference import grads

    zeros = grads.zero(exe.rt, state[0])
    out = grads.all_reduce_flat(exe.rt, zeros, group="dp")
    number = sum(p.numel() for n, p in zip(exe.rt.names, state[0]) if n.startswith("head"))
    assert sizes == [number] == [sum(g.numel() for g in zeros)]
    assert [g.shape for g in out] == [g.shape for g in zeros]
    exe.close()


@pytest.mark.parametrize("sam", [False, True])
def test_the_average_and_the_climb_leave_it_alone(sam: bool) -> None:
    exe = open_program(frozen(BLOCK, ema=True, sam=sam, accumulation=2))
    state = exe.init(SEED)
    before = copy(state[0])
    for _ in range(3):
        state = exe.step(state, MORE)
    values = {v.ty.kind: s for v, s in zip(exe.module.state, state)}
    for i, name in enumerate(exe.rt.names):
        same = torch.equal(values["ema"][i], before[i]), torch.equal(values["params"][i], before[i])
        assert same == ((False, False) if name in trained_names(exe) else (True, True)), name
    exe.close()


def test_a_step_that_is_not_finite_is_refused_with_frozen_parameters_too() -> None:
    exe = open_program(frozen(BLOCK), shipped_kernels(), feed=Poisoned({2: float("nan")}))
    state = run(exe, 2)
    before = copy(state[:2])
    state = exe.step(state, HYPER)
    assert_same_bits(copy(state[:2]), before)
    state = exe.step(state, HYPER)
    exe.close()
    head = exe.rt.names.index("head.weight")
    assert not torch.equal(state[0][head], before[0][head])


def test_a_run_freezes_and_refuses_a_pattern_of_nothing_or_of_all(tmp_path: Path) -> None:
    settings = {"num_steps": 3, "eval_every": 0, "train_batch_size": 16}
    run_ = config(tmp_path, freeze=r"^blocks\.", **settings)
    train(run_)
    drawn = open_program(spec("adamw"))
    first = dict(zip(drawn.rt.names, copy(drawn.init(run_.seed)[0])))
    drawn.close()
    tensors = contents(checkpoint_of(run_, 3))[0]
    for name, value in first.items():
        assert torch.equal(tensors[f"params/{name}"], value) == name.startswith("blocks."), name
    assert not any(n.startswith("opt/") and "/blocks." in n for n in tensors)
    for freeze, why in (("^neck", "matches no parameter"), (".", "matches every parameter")):
        with pytest.raises(VitcoreError, match=why):
            train(config(tmp_path, name="no", freeze=freeze, **settings))
