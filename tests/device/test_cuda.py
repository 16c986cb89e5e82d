"""On an NVIDIA GPU; where there is none, nothing here runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cuda.conftest import built, hyper, trained  # noqa: F401

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_recorded_step_computes_what_a_plain_one_does(trained: Any, precision: str) -> None:  # noqa: F811
    plain = trained(built("cuda", optimizer="adamw", precision=precision, disable_pass=("capture_step",)))
    told = trained(built("cuda", optimizer="adamw", precision=precision))
    assert told[0] == pytest.approx(plain[0], rel=1e-3 if precision == "bf16" else 1e-5)
    worst = max(float((a - b).norm() / b.norm().clamp(min=1e-6)) for a, b in zip(told[1], plain[1], strict=True))
    assert worst < (2e-2 if precision == "bf16" else 1e-4), worst


def test_the_gpu_computes_what_the_processor_does(trained: Any) -> None:  # noqa: F811
    here, there = trained(built("cuda", optimizer="sgdm")), trained(built("cpu", optimizer="sgdm"))
    assert here[0] == pytest.approx(there[0], rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"precision": "bf16"}, {"dropout": 0.1},
     {"disable_pass": ("capture_step",)}],
    ids=str,
)  # fmt: skip
def test_no_step_waits_for_the_device(settings: dict) -> None:
    exe = built("cuda", optimizer="adamw", **settings)
    state = exe.init(3)
    for step in range(6):
        state = exe.step(state, hyper(step))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(4):
            state = exe.step(state, hyper(step))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert exe.stats().host_reads == 0


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_each_attention_is_as_near_to_float64_as_torchs_own(name: str, spread: float) -> None:
    from vitcore_cuda import attention

    g = torch.Generator(device="cuda").manual_seed(0)
    qkv = torch.randn(2, 577, 3, 4, 64, device="cuda", generator=g)
    qkv[:, :, :2] *= spread**0.5
    qkv, weight = qkv.bfloat16(), torch.randn(2, 577, 256, device="cuda", generator=g)

    def grads(fused: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        x = qkv.to(dtype).requires_grad_()
        out = attention.of_packed(fused, x)
        return out.double(), torch.autograd.grad((out * weight.to(dtype)).sum(), x)[0].double()

    sdpa = torch.nn.functional.scaled_dot_product_attention
    exact = grads(lambda q, k, v, scale: torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v, torch.float64)
    ours = grads(attention._OPERATORS[name], torch.bfloat16)
    theirs = grads(lambda q, k, v, scale: sdpa(q, k, v, scale=scale), torch.bfloat16)
    for mine, its, true in zip(ours, theirs, exact, strict=True):
        assert (mine - true).norm() <= 1.5 * (its - true).norm()


@pytest.mark.parametrize("name", ["cudnn", "flash", "efficient"])
def test_each_attention_takes_heads_of_the_digits_model(name: str) -> None:
    from vitcore_cuda import attention

    qkv = torch.randn(4, 17, 3, 4, 12, device="cuda").bfloat16().requires_grad_()
    out = attention.of_packed(attention._OPERATORS[name], qkv)
    assert out.shape == (4, 17, 48) and torch.autograd.grad(out.sum(), qkv)[0].isfinite().all()


def test_measuring_names_an_operator_and_its_time() -> None:
    from vitcore_cuda import attention

    from vitcore.api import Shape

    found = attention.measure(Shape(rows=8, tokens=577, heads=12, head_width=64, narrow=True))
    assert found and set(found) <= set(attention._OPERATORS) and all(s > 0 for s in found.values())
