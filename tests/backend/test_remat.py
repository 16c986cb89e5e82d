"""Blocks that compute their activations twice: the same bits, twice the forwards, and what is kept is their inputs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, cpu, digits, shipped_kernels, spec
from torch import Tensor

from vitcore.backend import Backend, Kernel
from vitcore.model.vit import build_model
from vitcore.runtime.executable import Executable
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import walk
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower

MIXED = {"dropout": 0.1, "attention_dropout": 0.1, "drop_path": 0.3}


def opened(
    step: StepSpec, remat: str, kernels: tuple[Kernel, ...] = REFERENCE, precision: str = "fp32", *,
    backend: Backend | None = None, **variant: Any,
) -> Executable:  # fmt: skip
    backend = backend or cpu()
    module = lower(build(step), Lowering(backend, kernels, precision, remat=remat))
    model = build_model("ViT-digits", 8, 10, **variant)
    return Executable(module, backend, kernels, model, digits(8, step.accumulation))


def plain(value: Any) -> Any:
    """A state in tuples of no special kind."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    return tuple(map(plain, value)) if isinstance(value, (tuple, list)) else value


def trained(exe: Executable, steps: int = 3) -> Any:
    state = exe.init(SEED)
    for _ in range(steps):
        state = exe.step(state, {**HYPER, "rho": 0.05})
    exe.rt.wait()
    return plain(exe.saved(state))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-casts"])
@pytest.mark.parametrize("kernels", ["reference", "shipped"])
@pytest.mark.parametrize("variant", [{}, MIXED], ids=["plain", "dropout"])
def test_the_parameters_are_the_same_bits(kernels: str, precision: str, variant: dict[str, float]) -> None:
    asked = REFERENCE if kernels == "reference" else shipped_kernels()
    without, with_ = (opened(spec("adamw", 2), r, asked, precision, **variant) for r in ("none", "blocks"))
    assert_same_bits(trained(with_), trained(without))


def test_the_climb_of_sam_recomputes_with_the_parameters_that_it_climbed_to() -> None:
    without, with_ = (opened(spec("sgdm", 2, sam=True), r, **MIXED) for r in ("none", "blocks"))
    assert_same_bits(trained(with_), trained(without))


def test_two_forwards_before_two_backwards_compute_each_with_its_own_parameters() -> None:
    """No rule of ours does it, but one may."""
    found = []
    for remat in ("none", "blocks"):
        exe = opened(spec("sgdm"), remat, **MIXED)
        state, rt = exe.init(SEED), exe.rt
        params, key = state[0], state[[v.ty.kind for v in exe.module.state].index("key")]
        # With a head of zeros, as it is drawn, no gradient would reach a block.
        both = [tuple((p.detach() * by + 0.02).requires_grad_() for p in params) for by in (1.0, 1.1)]
        host, _ = rt.data_next__reference(0)
        batch = rt.data_put__reference(host)
        how = {"remat": "blocks"} if remat == "blocks" else {}
        tapes = [rt.model_forward__autograd(each, batch, key, **how)[1] for each in both]
        found.append([rt.model_backward__autograd(tape) for tape in tapes])
        exe.close()
    assert_same_bits(plain(found[0]), plain(found[1]))
    first = rt.names.index("blocks.0.mlp.fc1.weight")
    assert found[0][0][first].any() and not torch.equal(found[0][0][first], found[0][1][first])


@pytest.mark.parametrize("kernels", ["reference", "shipped"])
def test_each_block_runs_twice_and_the_rest_once(kernels: str) -> None:
    asked = REFERENCE if kernels == "reference" else shipped_kernels()
    counts = {}
    for remat in ("none", "blocks"):
        exe, ran = opened(spec("sgdm", 2), remat, asked), Counter[str]()
        for name, module in exe.rt.model.named_modules():
            module.register_forward_pre_hook(lambda m, a, ran=ran, name=name: ran.update([name]))
        exe.step(exe.init(SEED), HYPER)
        exe.close()
        counts[remat] = ran
    blocks = {n for n in counts["none"] if n.startswith("blocks.")}
    # The second forward stops at what the last backward of the block does not read: the product of its last layer.
    assert all(counts["blocks"][n] == 2 * counts["none"][n] == 4 for n in blocks if n.count(".") == 1)
    assert all(counts["blocks"][n] == counts["none"][n] == 2 for n in {*counts["none"]} - blocks)


def saved_bytes(exe: Executable) -> int:
    """What autograd keeps from the forward of a micro-batch, each storage once, parameters left out."""
    state, kept = exe.init(SEED), dict[int, Tensor]()
    own = {p.untyped_storage().data_ptr() for p in state[0]}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    forward = next(op for op in walk(exe.module["train"].ops) if op.name == "model.forward")
    host, _ = exe.rt.data_next__reference(0)
    key = state[[v.ty.kind for v in exe.module.state].index("key")]
    how = {k: v for k, v in forward.attrs.items() if k != "impl"}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        exe.rt.model_forward__autograd(state[0], exe.rt.data_put__reference(host), key, **how)
    exe.close()
    return sum(t.untyped_storage().nbytes() for t in kept.values())


def test_of_each_block_its_input_alone_is_kept() -> None:
    per_block = {}
    for remat in ("none", "blocks"):
        # The first block's input may be kept for other reasons too, and the last block is cut short.
        few, many = (saved_bytes(opened(spec("sgdm"), remat, depth=depth, **MIXED)) for depth in (3, 5))
        per_block[remat] = (many - few) // 2
    rows, tokens, width = 8, 17, build_model("ViT-digits", 8, 10).variant.width
    assert per_block["blocks"] == 4 * rows * tokens * width
    assert per_block["none"] > 8 * per_block["blocks"]


def test_the_text_says_it_and_the_default_does_not() -> None:
    for kernels in (REFERENCE, shipped_kernels()):
        for remat in ("none", "blocks"):
            module = lower(build(spec("sgdm", 2)), Lowering(cpu(), kernels, remat=remat))
            says = {p.name: [op.attrs.get("remat") for op in walk(p.ops) if op.name in RUNS] for p in module.programs}
            assert says["train"] == ["blocks" if remat == "blocks" else None] and says["eval"] == [None]


RUNS = ("model.forward", "model.grad", "model.apply")


def test_disabling_the_pass_keeps_everything() -> None:
    from vitcore.step.pipeline import pipeline

    module = lower(build(spec()), Lowering(cpu(), REFERENCE, remat="blocks"), pipeline((), ["rematerialise"]))
    assert "remat" not in str(module)
