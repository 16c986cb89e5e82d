"""Attention by torch's operators for NVIDIA GPUs: their arguments, layouts and what they keep on the device `meta`, which has
all three without a GPU; numbers by the operator that the processor has; the clock by one that is given."""

from __future__ import annotations

import math
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import vitcore_cuda
from vitcore_cuda import attention

from vitcore.api import Shape, VitcoreError
from vitcore.model.attention import self_attention
from vitcore.plugins import load_plugins
from vitcore.tuning import left_out

B, N, H, E = 2, 17, 3, 64
NAMES = ["cudnn", "flash", "efficient"]


def on_host(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """The operator of the same family that a processor has."""
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)[0]
    return out


def packed(device: str, dtype: torch.dtype = torch.bfloat16, width: int = E) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(B, N, 3, H, width, generator=g).to(device, dtype).requires_grad_()


@pytest.mark.parametrize("name", NAMES)
def test_the_operator_takes_what_the_projection_made_and_gives_what_the_next_one_reads(name: str) -> None:
    qkv_BN3HE = packed("meta")
    made: list[torch.Tensor] = []

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        qkv = (q, k, v)
        assert scale == E**-0.5 and all(
            x.untyped_storage().data_ptr() == qkv_BN3HE.untyped_storage().data_ptr() for x in qkv
        )
        made.append(attention._OPERATORS[name](*qkv, scale))
        return made[0]

    out_BND = attention.of_packed(fused, qkv_BN3HE)
    assert out_BND.shape == (B, N, H * E) and out_BND.dtype == torch.bfloat16
    assert out_BND._base is made[0] and out_BND.is_contiguous()  # no copy
    (grad,) = torch.autograd.grad(out_BND, qkv_BN3HE, torch.empty_like(out_BND))
    assert grad.shape == qkv_BN3HE.shape and grad.is_contiguous()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_memory_is_planned_by(name: str) -> None:
    keeps = next(k.keeps for k in vitcore_cuda.KERNELS if k.name == name)
    assert keeps is not None
    held: list[int] = []
    qkv = packed("meta")
    given = [x.transpose(1, 2) for x in qkv.unbind(2)]

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.numel() > 2:  # not the state of a generator
            held.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        out = attention._OPERATORS[name](*given, E**-0.5)
    rows = B * H * -(-N // 32) * 32 if name == "efficient" else B * H * N  # which pads its sums to lines of 32
    assert sum(held) == keeps.tokens * qkv[:, :, 0].numel() * 2 + out.numel() * 2 + rows * 4
    assert keeps.scores == 0 and keeps.rows == 1


@pytest.mark.parametrize("name", [*NAMES, "fused"])
def test_dropout_of_probabilities_is_refused_with_the_way_out(name: str) -> None:
    qkv = packed("meta")
    given = [x.transpose(1, 2) for x in qkv.unbind(2)] if name == "fused" else [qkv]
    how = {} if name == "fused" else {"attention": None}
    with pytest.raises(VitcoreError, match=rf"^{name}: attention dropout of 0.1 .*--disable_kernel cudnn flash"):
        getattr(attention, name)(None, *given, p=0.1, **how)


def test_the_order_in_which_q_k_and_v_are_taken_apart_is_the_references() -> None:
    qkv = packed("cpu", torch.float64)
    weight = torch.randn(B, N, H * E, dtype=torch.float64)
    found = [
        (out, *torch.autograd.grad((out * weight).sum(), qkv))
        for out in (attention.of_packed(on_host, qkv), self_attention(qkv))
    ]
    for ours, reference in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [12, 20, 64])
def test_a_head_of_any_width_is_given_one_that_the_operators_take(width: int) -> None:
    widths: list[int] = []

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        widths.append(q.shape[-1])
        return on_host(q, k, v, scale)

    qkv = packed("cpu", torch.float64, width)
    weight = torch.randn(B, N, H * width, dtype=torch.float64)
    ours, reference = attention.of_packed(fused, qkv), self_attention(qkv)
    torch.testing.assert_close(ours, reference, rtol=1e-12, atol=1e-12)
    made = [torch.autograd.grad((out * weight).sum(), qkv)[0] for out in (ours, reference)]
    torch.testing.assert_close(*made, rtol=1e-12, atol=1e-12)
    assert widths == [-(-width // 8) * 8]


def test_few_queries_are_answered_over_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention._OPERATORS, "efficient", on_host)
    q, k, v = (x.transpose(1, 2) for x in packed("cpu", torch.float64).unbind(2))
    out = attention.fused(None, q[:, :, :1], k, v)  # type: ignore[arg-type]
    torch.testing.assert_close(out, torch.softmax(q[:, :, :1] @ k.mT * E**-0.5, -1) @ v)
    assert out.shape == (B, H, 1, E)


class Clock:
    """torch.cuda's events, on a clock that the operators move."""

    now = 0.0
    OutOfMemoryError = torch.cuda.OutOfMemoryError

    def __init__(self) -> None:
        clock = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = clock.now

            def synchronize(self) -> None: ...

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)  # milliseconds

        self.Event = Event
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made, randn = Clock(), torch.randn
    monkeypatch.setattr(torch, "cuda", made)
    monkeypatch.setattr(torch, "randn", lambda size, dtype, device: randn(size, dtype=dtype))
    return made


def test_measuring_gives_seconds_of_those_that_take_the_shape_and_says_who_does_not(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Size] = []

    def slow(milliseconds: float) -> attention.Fused:
        def operator(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
            seen.append(q.shape)
            clock.now += milliseconds
            return on_host(q, k, v, scale)

        return operator

    def refuses(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(attention, "_OPERATORS", {"cudnn": refuses, "flash": slow(3.0), "efficient": slow(5.0)})
    shape = Shape(rows=B, tokens=N, heads=H, head_width=E, narrow=True)
    assert attention.measure(shape) == pytest.approx({"cudnn": math.inf, "flash": 3e-3, "efficient": 5e-3})
    assert clock.waits == 1 and set(seen) == {(B, H, N, E)}


def test_too_little_memory_is_no_refusal_of_the_shape(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("none left")

    monkeypatch.setattr(attention, "_OPERATORS", {"cudnn": full})
    with pytest.raises(clock.OutOfMemoryError):
        attention.measure(Shape(rows=B, tokens=N, heads=H, head_width=E, narrow=True))


def test_nothing_is_measured_where_one_operator_alone_takes_the_numbers(clock: Clock) -> None:
    assert attention.measure(Shape(rows=B, tokens=N, heads=H, head_width=E, narrow=False)) == {}


def test_every_operator_that_is_measured_is_a_kernel_of_the_backend() -> None:
    kernels = {k.name: k for k in load_plugins().kernels("cuda") if k.op == "self_attention"}
    assert list(kernels) == list(attention._OPERATORS)
    wide = types.SimpleNamespace(args=[types.SimpleNamespace(ty=types.SimpleNamespace(kind="params"))])
    refused = {name: k.refusal(wide, None) for name, k in kernels.items()}  # type: ignore[arg-type]
    assert refused == {"cudnn": "the weights are not narrow", "flash": "the weights are not narrow", "efficient": None}


@pytest.mark.parametrize(
    ("seconds", "left"),
    [
        ({"cudnn": math.inf, "flash": 2e-3, "efficient": 3e-3}, ["cudnn", "efficient"]),
        ({"cudnn": math.inf, "flash": math.inf, "efficient": math.inf}, ["cudnn", "efficient", "flash"]),
    ],
    ids=["one", "all"],
)
def test_an_operator_that_refuses_the_shape_never_claims_it(
    seconds: dict[str, float], left: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(attention, "measure", lambda shape: seconds)
    shape = Shape(rows=B, tokens=N, heads=H, head_width=E, narrow=True)
    for before in (lambda: None, None):  # measured, then read from where it was kept
        found = left_out(vitcore_cuda.CUDA, shape, before)
        assert sorted(found) == left
        assert found["cudnn"] == "tried here, it does not take 2 x 17 tokens, 3 heads of 64, bf16"
