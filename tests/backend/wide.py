"""Whole programs in float64: what the code calls float32 is float64 there, from the pictures to the buffers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, cpu, lowered, shipped_kernels
from torch import Tensor

from vitcore.backend import Backend, Kernel, World
from vitcore.data.augment import Augment
from vitcore.data.datasets import open_dataset
from vitcore.data.feed import Feed
from vitcore.model.variants import Variant
from vitcore.model.vit import VisionTransformer
from vitcore.runtime.executable import Executable, State
from vitcore.runtime.flat import Layout
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec
from vitcore.testing.recording import Recorder, Records

# Sizes that no kernel likes: 10 tokens of 10 numbers a head; a right and a lower edge that no patch covers.
SMALL = Variant(name="small", patch=4, width=20, depth=3, heads=2, mlp=28, img_size=14)
SIDE, CLASSES = 14, 5
SAVINGS = ("keep_bytes", "skip_unread", "fuse_grad")


@pytest.fixture
def float64() -> Iterator[None]:
    """Inside, float32 is float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(Layout.zeros, "__defaults__", (torch.float64,))
        for name in ("_fused_sgd_", "_fused_adamw_"):
            patch.setattr(torch, name, functools.partial(_with_single_flags, getattr(torch, name)))
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _with_single_flags(function: Callable[..., None], *args: Any, found_inf: Tensor, **more: Any) -> None:
    """torch's fused optimizers want their flag, and counts of updates, in float32 whatever the parameters are in."""
    *bundles, last = args
    counts = [t.float() for t in last] if function.__name__ == "_fused_adamw_" else last
    function(*bundles, counts, found_inf=found_inf.float(), **more)


def feed(accumulation: int = 1, augment: Augment | None = None, tokens: int | None = None, side: int = SIDE) -> Feed:
    """Made-up pictures of bytes."""
    data = open_dataset("synthetic", img_size=side, channels=3, train_size=24, eval_size=6, classes=CLASSES)
    return Feed(data, seed=SEED, micro_batch=4, accumulation=accumulation, augment=augment, eval_batch=3, tokens=tokens)


def opened(
    step: StepSpec,
    variant: Variant = SMALL,
    *,
    kernels: Sequence[Kernel] | None = None,
    disabled: Sequence[str] = (),
    backend: Backend | None = None,
    augment: Augment | None = None,
    wrap: Any = None,
    side: int = SIDE,
) -> Executable:
    """A program of the small model; inside `float64` all of it computes so."""
    kernels, backend = kernels or shipped_kernels(), backend or cpu()
    module = lowered(step, kernels, backend=backend, disabled=disabled)
    model = VisionTransformer(variant, side, CLASSES).to(torch.get_default_dtype())
    tokens = model.grid[0] * model.grid[1]
    data = feed(step.accumulation, augment, tokens, side)
    return Executable(module, backend, kernels, model, data, World(), guard=False, wrap=wrap)


def begun(exe: Executable) -> State:
    """A fresh state in which no parameter is 0 or 1, as heads, biases and norms are at first: so nothing is multiplied away."""
    state = exe.init(SEED)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for p in exe.rt.own_params():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
    return state


def values(step: StepSpec, variant: Variant = SMALL, *, plain: bool = False, **how: Any) -> tuple[str, Records]:
    """The text of `@train`, and the loss and gradients of one step and the logits of an evaluation; `plain`: of the reference
    kernels, without any saving."""
    if plain:
        how = {**how, "kernels": REFERENCE, "disabled": SAVINGS}
    recorder = Recorder()
    exe = opened(step, variant, wrap=recorder, **how)
    recorder.names = exe.rt.names
    state = exe.step(begun(exe), {**HYPER, "ema_keep": 0.9, "rho": 0.3})
    exe.eval(state, 2)
    exe.close()
    kept = ("model.forward", "grads.scale", "model.apply")
    return str(exe.module["train"]), {k: t for k, t in recorder.records.items() if k[0] in kept}


def furthest(have: Records, want: Records) -> float:
    """The greatest distance of two records of the same names, each relative to the norm of the second, or to the norm of all
    gradients where it has next to none: what a class token's key does to itself is 0."""
    assert have.keys() == want.keys() and len(want) > 10
    scale = float(torch.stack([t.norm() for (op, _, _), t in want.items() if op == "grads.scale"]).norm())
    assert scale > 1e-2

    def apart(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / max(float(other.norm()), 1e-6 * scale))

    return max(apart(have[k], t) for k, t in want.items())
