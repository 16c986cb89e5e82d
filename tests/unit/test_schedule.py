"""The learning rate against the schedulers of transformers and torch, in one run, and at the steps that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from vitcore.schedule import learning_rate

THEIRS: dict[str, Callable[[Any, int, int, int], Any]] = {
    "cosine": lambda opt, total, warmup, cooldown: get_cosine_schedule_with_warmup(opt, warmup, total),
    "linear": lambda opt, total, warmup, cooldown: get_linear_schedule_with_warmup(opt, warmup, total),
    "constant": lambda opt, total, warmup, cooldown: get_constant_schedule_with_warmup(opt, warmup),
    "wsd": lambda opt, total, warmup, cooldown: get_wsd_schedule(
        opt, warmup, cooldown, num_training_steps=total, decay_type="linear"
    ),
}


def rates(make: Callable[[Any], Any], steps: int) -> list[float]:
    opt = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler, out = make(opt), []
    for _ in range(steps):
        out.append(scheduler.get_last_lr()[0])
        opt.step()
        scheduler.step()
    return out


@pytest.mark.parametrize("decay", THEIRS)
@pytest.mark.parametrize(("total", "warmup", "cooldown"), [(50, 7, 12), (50, 0, 50), (20, 10, 10), (9, 1, 1)])
def test_a_schedule_is_that_of_transformers(decay: str, total: int, warmup: int, cooldown: int) -> None:
    if decay == "wsd" and warmup + cooldown > total:
        pytest.skip("theirs has no such schedule")
    want = rates(lambda opt: THEIRS[decay](opt, total, warmup, cooldown), total)
    have = [
        learning_rate(s, base=0.3, total=total, warmup=warmup, decay=decay, cooldown=cooldown) for s in range(total)
    ]
    assert have == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_a_cosine_without_warm_up_is_torchs() -> None:
    want = rates(lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 40), 40)
    have = [learning_rate(s, base=0.3, total=40, warmup=0, decay="cosine") for s in range(40)]
    assert have == pytest.approx(want, rel=1e-9)


def test_a_tenth_of_the_steps_is_the_cooldown_where_none_is_given() -> None:
    said = [learning_rate(s, base=1.0, total=200, warmup=10, decay="wsd") for s in range(201)]
    assert said[:11] == [s / 10 for s in range(11)]
    assert said[10:181] == [1.0] * 171  # 10 to 180
    assert said[180:] == pytest.approx([(200 - s) / 20 for s in range(180, 201)])
    assert sum(rate == 1.0 for rate in said) == 171 and said[200] == 0.0
    assert learning_rate(4, base=1.0, total=5, warmup=0, decay="wsd") == 1.0  # a run of few steps has one of cooldown


@settings(max_examples=200, deadline=None)
@given(
    total=st.integers(1, 400), warmup=st.integers(0, 500), cooldown=st.integers(0, 500),
    decay=st.sampled_from([*THEIRS]), step=st.integers(0, 500),
)  # fmt: skip
def test_a_rate_is_never_negative_nor_above_its_base(
    total: int, warmup: int, cooldown: int, decay: str, step: int
) -> None:
    """Whatever the settings: also a warm-up that is longer than the run, and a cooldown that overlaps it."""
    assert 0.0 <= learning_rate(step, base=0.3, total=total, warmup=warmup, decay=decay, cooldown=cooldown) <= 0.3
