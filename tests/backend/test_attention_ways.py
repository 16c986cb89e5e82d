"""The cpu's ways of computing self-attention: in float64 all are one formula, in bf16 each is as near to float64 as said."""

from __future__ import annotations

import math

import pytest
import torch
from rig import guarded  # noqa: F401
from torch import Tensor
from vitcore_cpu.attention import _WAYS

from vitcore.model.attention import self_attention

WAYS = sorted({*_WAYS} - {"sdpa_fp32"})
SHAPES = [(2, 5, 2, 4), (1, 16, 3, 8), (3, 17, 2, 12)]  # rows, tokens, heads, width of a head


def given(shape: tuple[int, int, int, int], std: float = 1.0) -> Tensor:
    """q, k and v side by side whose scores have this deviation."""
    rows, tokens, heads, width = shape
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(rows, tokens, 3, heads, width, generator=generator, dtype=torch.float64)
    # A product of width normal numbers, over sqrt(width), has deviation 1.
    qkv[:, :, :2] *= math.sqrt(std)
    return qkv


def by_hand(qkv: Tensor) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    shares = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5, -1)
    return torch.einsum("bhnm,bhmd->bnhd", shares, v).flatten(2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_in_float64_each_way_and_its_gradient_are_the_formula(way: str, shape: tuple[int, int, int, int]) -> None:
    qkv, kept = given(shape).requires_grad_(), given(shape)
    outer = torch.randn(shape[0], shape[1], shape[2] * shape[3], dtype=torch.float64)
    have, want, usual = _WAYS[way](qkv), by_hand(qkv), self_attention(qkv)
    torch.testing.assert_close(have, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(usual, want, rtol=1e-12, atol=1e-13)
    ours, theirs, third = (torch.autograd.grad(out, qkv, outer)[0] for out in (have, want, usual))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(third, theirs, rtol=1e-11, atol=1e-12)
    assert torch.equal(qkv, kept), "what the projection made is its own"


@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_differences(way: str) -> None:
    assert torch.autograd.gradcheck(_WAYS[way], given((1, 5, 2, 3)).requires_grad_())


@pytest.mark.parametrize("way", WAYS)
def test_what_comes_back_may_be_of_any_strides(way: str) -> None:
    qkv = given((2, 5, 2, 4)).requires_grad_()
    outer = torch.randn(5, 2, 8, dtype=torch.float64).transpose(0, 1)
    torch.testing.assert_close(
        torch.autograd.grad(_WAYS[way](qkv), qkv, outer)[0],
        torch.autograd.grad(by_hand(qkv), qkv, outer)[0],
        rtol=1e-11,
        atol=1e-12,
    )


# ---- bf16, against float64 in one run ----

PARTS = ("out", "dq", "dk", "dv")
# Times sdpa's own distance, which computes scores and softmax in float32: the output, and the worst of the gradients.
BOUNDS = {
    "products": (6.0, 6.0), "products_padded": (6.0, 6.0), "fused_forward": (1.5, 8.0), "sdpa": (1.0, 1.0),
    "sdpa_fp32": (1.5, 1.5),
}  # fmt: skip


def distances(way: str, std: float) -> dict[str, float]:
    """Relative distances from float64 of the output and the three gradients, of numbers that bf16 holds."""
    narrow = given((4, 65, 4, 32), std).to(torch.bfloat16).requires_grad_()
    exact = narrow.detach().double().requires_grad_()
    outer = torch.randn(4, 65, 128, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    out, want = _WAYS[way](narrow), by_hand(exact)
    assert out.dtype == torch.bfloat16
    ours, theirs = torch.autograd.grad(out, narrow, outer)[0], torch.autograd.grad(want, exact, outer.double())[0]
    pairs = [(out, want), *((ours[:, :, i], theirs[:, :, i]) for i in range(3))]
    found = [float((a.detach().double() - b.detach()).norm() / b.detach().norm()) for a, b in pairs]
    return dict(zip(PARTS, found, strict=True))


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_in_bf16_each_way_is_as_near_to_float64_as_said(std: float) -> None:
    usual = distances("sdpa", std)
    print(
        f"\nscores of deviation {std:g}: " + " ".join(f"{p} {d:.1e}" for p, d in usual.items()) + " by sdpa; times it:"
    )
    for way, (forward, backward) in BOUNDS.items():
        times = {part: d / usual[part] for part, d in distances(way, std).items()}
        print(f"  {way:16}" + " ".join(f"{part} {t:.2f}" for part, t in times.items()))
        assert times["out"] <= forward and max(times[p] for p in PARTS[1:]) <= backward, (way, times)
    assert all(1e-4 < d < 3e-2 for d in usual.values())
