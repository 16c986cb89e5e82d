"""Products of 8 bits: their casts and scales against float64, what they cost in digits, and where they are not used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from vitcore_cuda import fp8

from tests.cuda.conftest import built, hyper
from vitcore.config import Config
from vitcore.plan import make_plan

ROWS, READ, MADE = 40, 64, 96


def drawn(*size: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    # Rows of very different sizes, which one scale for all would lose.
    return torch.randn(size, generator=g) * torch.logspace(-4, 4, size[0])[:, None]


def far(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The relative distance of the worst row."""
    return float(((found.double() - exact).norm(dim=1) / exact.norm(dim=1)).max())


def test_a_row_is_scaled_to_the_whole_range() -> None:
    x = drawn(ROWS, READ)
    narrow, scale = fp8.by_rows(x)
    assert narrow.dtype == torch.float8_e4m3fn and scale.shape == (ROWS, 1) and scale.dtype == torch.float32
    assert torch.equal(narrow.float().abs().amax(1), torch.full((ROWS,), 448.0))
    back, large = narrow.double() * scale.double(), x.abs() > x.abs().amax(1, keepdim=True) * 2.0**-14
    # Half a unit of the last of 3 bits, where the number is none of the smallest.
    assert float(((back - x.double()) / x.double())[large].abs().max()) <= 2.0**-4 * (1 + 1e-6)


def test_rows_of_zeros_stay_and_what_is_not_finite_is_seen() -> None:
    x = torch.zeros(3, READ)
    x[1, 5], x[2, 5] = torch.inf, torch.nan
    narrow, scale = fp8.by_rows(x)
    back = narrow.float() * scale
    assert torch.equal(back[0], x[0]) and not back[1].isfinite().all() and not back[2].isfinite().all()


def test_a_product_is_as_near_as_8_bits_are() -> None:
    a, b, bias = drawn(ROWS, READ), drawn(MADE, READ, seed=1), torch.zeros(MADE)
    b /= b.norm(dim=1, keepdim=True)
    exact = a.double() @ b.double().t()
    assert far(fp8.product(a.bfloat16(), b.bfloat16(), bias.bfloat16()), exact) < 0.08
    assert far(fp8.product(a.bfloat16(), b.bfloat16()), exact) > 0.005  # it is not done in bf16


def test_a_layer_and_its_gradients() -> None:
    layer = nn.Linear(READ, MADE).to(torch.bfloat16)
    parent = nn.Module()
    parent.blocks = nn.ModuleList([layer])  # type: ignore[assignment]
    assert fp8.convert(parent) == fp8.convert(parent) == 1 and type(layer) is fp8.Dense
    x = torch.randn(2, ROWS, READ, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    g = torch.randn(2, ROWS, MADE, generator=torch.Generator().manual_seed(1)).bfloat16()
    out = layer(x)
    made = torch.autograd.grad(out, (x, layer.weight, layer.bias), g)

    wide = [t.detach().double().requires_grad_() for t in (x, layer.weight, layer.bias)]
    exact = nn.functional.linear(*wide)
    true = torch.autograd.grad(exact, wide, g.double())
    found = [
        float((a.double() - b).detach().norm() / b.detach().norm())
        for a, b in zip((out, *made), (exact, *true), strict=True)
    ]
    assert [round(f, 2) <= bound for f, bound in zip(found, (0.05, 0.05, 0.01, 0.01), strict=True)] == [True] * 4, found
    assert found[0] > 0.005 and found[1] > 0.005
    layer.eval()
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_layers_whose_sides_do_not_divide_stay_as_they_are() -> None:
    parent = nn.Module()
    parent.blocks = nn.ModuleList([nn.Linear(24, 32), nn.Linear(32, 24)])  # type: ignore[assignment]
    assert fp8.convert(parent) == 0


class Products(TorchDispatchMode):
    """Counts products of 8 bits."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._scaled_mm.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def host() -> dict[str, Any]:
    torch._dynamo.reset()
    return {"device": "cpu", "open": None, "wait": None, "probe": None, "pinned": False, "compiler": "aot_eager"}


WITHOUT = ("cudnn", "flash", "efficient", "fused", "beside")


def test_a_step_multiplies_in_8_bits_and_an_evaluation_does_not(host: dict[str, Any], trained: Any) -> None:
    settings = {"optimizer": "adamw", "precision": "bf16", "disable_kernel": WITHOUT, "disable_pass": ("capture_step",)}
    exe = built("cuda", host, enable_kernel=("fp8",), **settings)
    state = exe.step(exe.init(3), hyper(0))
    with Products() as step:
        state = exe.step(state, hyper(1))
    with Products() as evaluation:
        exe.eval(state, 1)
    # Four layers a block; of the last one the layer of q, k and v is cut in two. Each is two products of 8 bits.
    assert (step.count, evaluation.count) == ((4 * 12 - 1) * 2, 0)
    narrow = trained(built("cuda", host, enable_kernel=("fp8",), **settings))
    usual = trained(built("cuda", host, **settings))
    assert narrow[0] != usual[0] and narrow[0] == pytest.approx(usual[0], rel=0.1)


def test_the_text_names_it_and_float32_refuses_it() -> None:
    def plan(precision: str) -> Any:
        return make_plan(
            Config(backend="cuda", precision=precision, enable_kernel=("fp8",)),
            to_run=False,  # type: ignore[arg-type]
        )

    assert "impl=fp8" in plan("bf16").show("lowered")
    assert "impl=fp8" not in plan("fp32").show("lowered")
    assert "fp8 refused: the weights are not narrow" in plan("fp32").explain()
    usual = make_plan(Config(backend="cuda", precision="bf16"), to_run=False)
    assert "impl=fp8" not in usual.show("lowered") and "--enable_kernel fp8 takes it" in usual.explain()
