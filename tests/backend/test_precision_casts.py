"""The policy `bf16-casts`: what computes narrow, how far from float64 that is, and that it is in the text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rig import HYPER, SEED, cpu, digits, lowered, open_program, run, shipped_kernels, spec
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitcore.errors import VitcoreError
from vitcore.model.init import init_parameters
from vitcore.model.loss import cross_entropy
from vitcore.model.vit import VisionTransformer, build_model
from vitcore.runtime.casts import NARROW, WIDE, ExplicitCasts

ROOM = 2.0
"""How many times further than autocast's the casts' gradients may be; the tables differ a little."""


def small(name: str, side: int, **sizes: Any) -> VisionTransformer:
    model = build_model(name, side, 10, **sizes)
    init_parameters(model, torch.Generator().manual_seed(1))
    torch.nn.init.normal_(model.head.weight, std=0.2)
    return model


MODELS = {
    "token": lambda: small("ViT-Ti_16", 32, width=64, depth=3, heads=4, mlp=128),
    "mean and representation": lambda: small("ViT-Ti_16", 32, width=64, depth=2, heads=4, mlp=128, pool="gap", representation=48),
    "hybrid": lambda: small("R26-ViT-S_32", 64, width=64, depth=1, heads=4, mlp=128),
}  # fmt: skip


def gradients(model: VisionTransformer, x: Tensor, y: Tensor, how: Any) -> tuple[Tensor, list[Tensor]]:
    with how:
        loss = cross_entropy(model(x), y, torch.ones(len(y), dtype=x.dtype))
    return loss, list(torch.autograd.grad(loss, [*model.parameters()]))


def apart(found: list[Tensor], exact: list[Tensor]) -> float:
    return float(sum((f.double() - e).square().sum() for f, e in zip(found, exact)) ** 0.5
                 / sum(e.square().sum() for e in exact) ** 0.5)  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_as_near_to_float64_as_autocast(kind: str) -> None:
    model = MODELS[kind]()
    g = torch.Generator().manual_seed(2)
    x, y = torch.rand(8, 3, *model.img_size, generator=g) * 2 - 1, torch.randint(0, 10, (8,), generator=g)
    loss, ours = gradients(model, x, y, ExplicitCasts())
    _, theirs = gradients(model, x, y, torch.autocast("cpu", torch.bfloat16))
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in ours)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    exact_loss, exact = gradients(model.double(), x.double(), y, torch.enable_grad())
    assert 1e-4 < apart(ours, exact) < ROOM * apart(theirs, exact), (apart(ours, exact), apart(theirs, exact))
    assert abs(loss.item() - exact_loss.item()) < 0.03


class Watching(TorchFunctionMode):
    """Notes the dtypes of the tensors that functions are called with, inside the casts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, set[torch.dtype]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = {
            a.dtype for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor) and a.is_floating_point()
        }
        self.seen.setdefault(func, set()).update(tensors)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", MODELS)
def test_products_are_narrow_and_norms_are_wide(kind: str) -> None:
    model = MODELS[kind]()
    x = torch.rand(2, 3, *model.img_size)
    with Watching() as watching, ExplicitCasts():
        model(x)
    narrow = {f for f in watching.seen if f in NARROW}
    assert {F.linear, torch.matmul} <= narrow
    assert all(watching.seen[f] == {torch.bfloat16} for f in narrow), watching.seen
    wide = {f: d for f, d in watching.seen.items() if f in WIDE}
    assert wide and all(torch.bfloat16 not in dtypes for dtypes in wide.values()), wide


def test_outside_nothing_is_cast() -> None:
    a, b = torch.rand(3, 3), torch.rand(3, 3)
    with ExplicitCasts():
        assert (a @ b).dtype == torch.bfloat16 and (a + b).dtype == torch.float32
        assert torch.softmax((a @ b), -1).dtype == torch.float32 and (a.long() @ b.long()).dtype == torch.int64
    assert (a @ b).dtype == torch.float32


def test_the_text_says_it_on_the_ops_that_run_the_model() -> None:
    module = lowered(spec(), precision="bf16-casts")
    text = str(module)
    assert text.count("casts=bf16") == 2 and "autocast" not in text and "precision=bf16-casts" in text
    with pytest.raises(VitcoreError, match="precision 'bf16-casts' is not offered by backend 'narrow'"):
        from dataclasses import replace

        lowered(spec(), backend=replace(cpu(), name="narrow", precisions=("fp32", "bf16")), precision="bf16-casts")


@pytest.mark.parametrize("kernels", ["reference", "shipped"])
def test_a_run_learns_as_in_fp32_and_keeps_wide_state(kernels: str) -> None:
    losses = {}
    for precision in ("fp32", "bf16-casts"):
        how = {"kernels": shipped_kernels()} if kernels == "shipped" else {}
        exe = open_program(
            spec("adamw"), feed=digits(32), micro_batch=32, dropout=0.1, precision=precision, guard=True, **how
        )
        state = exe.init(SEED)
        for i in range(40):
            state = exe.step(state, {**HYPER, "lr": 0.003})
            if i == 30:
                state, _ = exe.log(state)
        assert all(p.dtype == torch.float32 for p in state[0])
        state = exe.eval(state, 2)
        _, report = exe.log(state)
        losses[precision] = report["loss"] / report["loss_n"]
        assert report["eval_total"] == 100 and report["bad_steps"] == 0
        exe.close()
    assert losses["fp32"] != losses["bf16-casts"] and abs(losses["fp32"] - losses["bf16-casts"]) < 0.1, losses


def test_it_is_another_rounding_and_not_autocasts() -> None:
    ends = {p: run(open_program(spec(), precision=p), 3)[0] for p in ("fp32", "bf16", "bf16-casts")}
    assert not any(torch.equal(a, b) for a, b in zip(ends["fp32"][:1], ends["bf16-casts"][:1]))
