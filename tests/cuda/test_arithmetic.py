"""How float32 is multiplied: said before the first step, full unless asked for, and each program's own in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vitcore_cuda import device

from tests.cuda.conftest import built, hyper
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.plan import make_plan

HOST = {"device": "cpu", "open": None, "wait": None, "probe": None, "pinned": False, "capture": None}
WITHOUT = ("cudnn", "flash", "efficient", "fused", "beside")


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(device, "_now", "")
    held = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in held]
    yield
    for switch, value in zip(held, before, strict=True):
        switch.allow_tf32 = value


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("precision", "short", "said"),
    [("fp32", False, "in full, no TF32"), ("bf16", False, "in full, no TF32"), ("tf32", True, "TF32, with 10 bits")],
)
def test_both_switches_are_what_the_precision_means(precision: str, short: bool, said: str) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = not short
    assert said in device.arithmetic(precision)
    assert switches() == (short, short)


def on_host(precision: str) -> Any:
    exe = built(
        "cuda", HOST, optimizer="sgdm", precision=precision, disable_kernel=WITHOUT, disable_pass=("capture_step",)
    )
    return exe, exe.init(3)


def test_two_programs_of_one_process_each_have_their_own() -> None:
    seen = []
    (full, a), (short, b) = on_host("fp32"), on_host("tf32")
    for step in range(2):
        a = full.step(a, hyper(step))
        seen.append(switches())
        b = short.step(b, hyper(step))
        seen.append(switches())
    full.eval(a, 1)
    assert seen == [(False, False), (True, True)] * 2 and switches() == (False, False)


def test_the_text_says_tf32_and_nothing_else_moves() -> None:
    def lowered(precision: str) -> str:
        plan = make_plan(Config(model_type="ViT-Ti_16", backend="cuda", precision=precision), to_run=False)  # type: ignore[arg-type]
        return plan.show("lowered")

    assert lowered("fp32").replace("precision=fp32", "precision=tf32") == lowered("tf32")


def test_a_backend_without_the_switch_refuses_it() -> None:
    with pytest.raises(
        VitcoreError, match="precision 'tf32' is not offered by backend 'cpu'; choose one of: fp32, bf16"
    ):
        make_plan(Config(backend="cpu", precision="tf32"), to_run=False)
