"""The most bytes that are alive in a step, beside a plain loop's on the same model: a program holds no more than a hand would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measured_memory import Live
from torch import Tensor

from vitcore.config import Config
from vitcore.model.functions import Functions
from vitcore.model.vit import VisionTransformer, build_model
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.session import Session

MODEL, CLASSES, ROWS = "ViT-Ti_16", 10, 16


def sdpa(qkv_BN3HD: Tensor, **how: Any) -> Tensor:
    """Attention as anyone writes it."""
    q_BHND, k_BHND, v_BHND = qkv_BN3HD.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q_BHND, k_BHND, v_BHND).transpose(1, 2).flatten(2)


def by_hand(side: int, accumulation: int, fused_attention: bool, bf16: bool = False) -> int:
    """Peak bytes of the second and third step of a plain loop."""
    with Live() as live:
        model: VisionTransformer = build_model(MODEL, side, CLASSES).train()
        if fused_attention:
            model.functions = Functions(self_attention=sdpa)
        opt = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
        for step in range(3):
            for _ in range(accumulation):
                images = torch.zeros(ROWS, 3, side, side, dtype=torch.uint8)
                labels = torch.zeros(ROWS, dtype=torch.int64)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = F.cross_entropy(model(images).float(), labels) / accumulation
                loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
            if step == 0:
                live.again()
    return live.most


def by_program(side: int, accumulation: int, **settings: Any) -> int:
    """The same of the program, as a run opens it."""
    config = Config(
        dataset="synthetic", backend="cpu", model_type=MODEL, img_size=side, workers=0, threads=1,
        train_batch_size=ROWS * accumulation, gradient_accumulation_steps=accumulation, **settings,
    )  # fmt: skip
    plan = make_plan(config)
    with Live() as live, Session(plan, find_origin(config)) as session:
        state, _ = session.start()
        for step in range(3):
            state = session.executable.step(state, {"lr": 0.01, **config.hypers(step)})
            if step == 0:
                live.again()
    return live.most


@pytest.mark.parametrize("fused_attention", [False, True], ids=["reference attention", "fused attention"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("side", [64, 128])
def test_a_step_in_fp32_holds_at_most_a_twentieth_more_than_a_loop_by_hand(
    side: int, accumulation: int, fused_attention: bool
) -> None:
    ours, theirs = by_program(side, accumulation), by_hand(side, accumulation, fused_attention)
    print(f"{side} px, accumulation {accumulation}: ours {ours:,}, by hand {theirs:,}, ratio {ours / theirs:.3f}")
    assert ours <= 1.05 * theirs


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_narrow_step_holds_less_than_a_loop_by_hand_under_autocast(accumulation: int) -> None:
    ours, theirs = by_program(128, accumulation, precision="bf16"), by_hand(128, accumulation, True, bf16=True)
    print(f"bf16, accumulation {accumulation}: ours {ours:,}, by hand {theirs:,}, ratio {ours / theirs:.3f}")
    assert ours <= 1.05 * theirs
