"""The program and a loop written by hand in plain PyTorch come to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hand_loop import Trained, hand_loop, rate
from rig import (
    HYPER,
    SEED,
    config,
    contents,
    digits,
    open_program,
    records,
    relative_error,
    shipped_kernels,
    spec,
    train,
)

from vitcore.model.vit import build_model
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.reference import REFERENCE
from vitcore.schedule import learning_rate
from vitcore.step.ir import Group
from vitcore.step.ops import FUNCTIONS

MICRO, BASES = 8, {"sgdm": 0.1, "adamw": 0.003}
# Attention is that of the model: the backend's own ways of it round in another order (tests/backend/test_savings.py).
PLAIN = shipped_kernels(without=("self_attention", "attention"))


def by_hand(optimizer: str, accumulation: int, steps: int = 10, **more: Any) -> Trained:
    feed = digits(MICRO, accumulation)
    rates = [rate(i, base=BASES[optimizer], warmup=steps // 5, total=steps) for i in range(steps)]
    try:
        return hand_loop(
            build_model("ViT-digits", 8, 10, dropout=0.0), feed, seed=SEED, optimizer=optimizer, hyper=HYPER,
            accumulation=accumulation, rates=rates, **more,
        )  # fmt: skip
    finally:
        feed.close()


def by_program(exe: Executable, optimizer: str, steps: int = 10) -> tuple[State, list[float]]:
    """The final state and the logged losses."""
    state, losses = exe.init(SEED), []
    for step in range(steps):
        lr = learning_rate(step, base=BASES[optimizer], total=steps, warmup=steps // 5, decay="cosine")
        state = exe.step(state, {**HYPER, "lr": lr})
        if (step + 1) % 5 == 0:
            state, report = exe.log(state)
            losses.append(report["loss"] / report["loss_n"])
    exe.close()
    return state, losses


def assert_equal(exe: Executable, state: State, losses: list[float], hand: Trained) -> None:
    params, slots = state[0], state[1]
    assert losses == hand.losses
    assert exe.rt.names == list(hand.params)
    for name, p in zip(exe.rt.names, params, strict=True):
        assert torch.equal(p, hand.params[name]), name
    assert {*slots} - {"step"} == {*hand.slots}
    for slot, of in hand.slots.items():
        for name, t in zip(exe.rt.names, slots[slot], strict=True):
            assert torch.equal(t, of[name]), (slot, name)
    if "step" in slots:
        assert slots["step"][0].item() == hand.steps > 0


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_every_logged_loss_and_all_final_state_are_those_of_a_plain_loop(optimizer: str, accumulation: int) -> None:
    exe = open_program(spec(optimizer, accumulation, clip=False), PLAIN, micro_batch=MICRO)
    assert "opt.update" in str(exe.module) and "impl=torch_fused" in str(exe.module)
    state, losses = by_program(exe, optimizer, steps=30)
    assert len({*losses}) == 6 and all(bool((p != 0).any()) for p in state[0])  # it did train
    assert_equal(exe, state, losses, by_hand(optimizer, accumulation, steps=30))


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_two_parameter_groups_are_those_of_a_plain_loop(optimizer: str) -> None:
    groups = (Group("undecayed", r"bias$", lr=1.5, weight_decay=0.0), Group("rest", weight_decay=2.0))
    exe = open_program(spec(optimizer, 2, clip=False, groups=groups), PLAIN, micro_batch=MICRO)
    state, losses = by_program(exe, optimizer)
    hand = by_hand(optimizer, 2, groups={"bias": (1.5, 0.0), "": (1.0, 2.0)})
    assert_equal(exe, state, losses, hand)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_bf16_without_narrow_weights_is_that_of_a_plain_loop_under_autocast(optimizer: str) -> None:
    exe = open_program(
        spec(optimizer, 2, clip=False), PLAIN, micro_batch=MICRO, precision="bf16", disabled=["narrow_weights"]
    )
    state, losses = by_program(exe, optimizer)
    assert_equal(exe, state, losses, by_hand(optimizer, 2, bf16=True))
    assert all(p.dtype == torch.float32 for p in state[0])


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw"])
def test_bf16_is_that_of_a_plain_loop_with_narrow_weights(optimizer: str) -> None:
    exe = open_program(spec(optimizer, 2, clip=False), PLAIN, micro_batch=MICRO, precision="bf16")
    assert "params.narrow" in str(exe.module)
    state, losses = by_program(exe, optimizer)
    assert_equal(exe, state, losses, by_hand(optimizer, 2, narrow=True))
    assert all(p.dtype == torch.float32 for p in state[0])


def test_bf16_is_not_fp32() -> None:
    ways = [by_hand("sgdm", 1, **how).losses for how in ({"bf16": True}, {"narrow": True}, {})]
    assert len({*map(tuple, ways)}) == 3


def test_label_smoothing_is_that_of_a_plain_loop() -> None:
    exe = open_program(spec("sgdm", 1, clip=False, label_smoothing=0.1), PLAIN, micro_batch=MICRO)
    state, losses = by_program(exe, "sgdm")
    assert_equal(exe, state, losses, by_hand("sgdm", 1, label_smoothing=0.1))


@pytest.mark.parametrize("kernels", ["shipped", "reference"])
def test_clipping_agrees_with_the_stock_function(kernels: str) -> None:
    use = shipped_kernels() if kernels == "shipped" else REFERENCE
    exe = open_program(spec("sgdm", 2), use, micro_batch=MICRO)
    state, losses = by_program(exe, "sgdm")
    hand, unclipped = by_hand("sgdm", 2, max_norm=HYPER["max_norm"]), by_hand("sgdm", 2)
    assert relative_error(state[0], [*hand.params.values()]) < 1e-6
    assert losses == pytest.approx(hand.losses, rel=1e-5)
    assert relative_error(state[0], [*unclipped.params.values()]) > 1e-4  # there was something to clip


def test_a_whole_run_of_the_trainer_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    settings = config(tmp_path, num_steps=20, dropout=0.0, max_grad_norm=0.0, decay_norms_and_biases=True, eval_every=0,
                      augment_rotate=10.0, augment_shear=5.0,
                      disable_kernel=tuple({k.name for k in shipped_kernels() if k.op in FUNCTIONS}))  # fmt: skip
    result = train(settings)
    feed = digits(32, 2)
    hand = hand_loop(
        build_model("ViT-digits", 8, 10, dropout=0.0), feed, seed=SEED, optimizer="adamw", accumulation=2, hyper=HYPER,
        rates=[rate(i, base=0.003, warmup=4, total=20) for i in range(20)],
    )  # fmt: skip
    feed.close()
    tensors, _, _ = contents(Path(result.checkpoint or ""))
    assert [line["loss"] for line in records(settings, "train").values()] == hand.losses
    for name, p in hand.params.items():
        assert torch.equal(tensors[f"params/{name}"], p), name
    for slot, of in hand.slots.items():
        for name, t in of.items():
            assert torch.equal(tensors[f"opt/{slot}/{name}"], t), (slot, name)
    assert tensors["opt/step"].item() == 20
