"""Inside a region nothing waits for the device: the guard sees it, names the op and the line, and lets the rest be."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rig import HYPER, SEED, config, open_program, run, shipped_kernels, spec
from torch import Tensor

from vitcore.backend import Kernel
from vitcore.config import Config
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.recipes import load_recipe
from vitcore.runtime.guards import HostReadError, no_host_reads
from vitcore.runtime.reference import REFERENCE, grads
from vitcore.session import Session

T = torch.tensor([1.0, 2.0, 0.0])
MASK = T > 0

READS: dict[str, tuple[Callable[[], Any], str]] = {
    "item": (lambda: T[0].item(), "_local_scalar_dense"),
    "float()": (lambda: float(T[0]), "_local_scalar_dense"),
    "int()": (lambda: int(T[0]), "_local_scalar_dense"),
    "bool()": (lambda: bool(T[0]), "_local_scalar_dense"),
    "if": (lambda: 1 if T[0] > 0 else 0, "_local_scalar_dense"),
    "a format": (lambda: f"{T[0]:.3f}", "_local_scalar_dense"),
    "an index of a list": (lambda: [1, 2, 3][T[0].long()], "_local_scalar_dense"),
    "max of Python": (lambda: max(T[0], T[1]), "_local_scalar_dense"),
    "in": (lambda: 2.0 in T, "_local_scalar_dense"),
    "a slice's end": (lambda: T[: T[0].long()], "_local_scalar_dense"),
    "nonzero": (lambda: T.nonzero(), "nonzero"),
    "where of one": (lambda: torch.where(MASK), "nonzero"),
    "masked_select": (lambda: T.masked_select(MASK), "masked_select"),
    "a boolean index": (lambda: T[MASK], "index.Tensor"),
    "writing by a boolean index": (lambda: T.clone().__setitem__(MASK, torch.ones(2)), "index_put_"),
    "unique": (lambda: T.unique(), "_unique2"),
    "unique rows": (lambda: torch.unique(T[None], dim=1), "unique_dim"),
    "unique in a row": (lambda: T.unique_consecutive(), "unique_consecutive"),
    "bincount": (lambda: T.long().bincount(), "bincount"),
    "repeats of unknown number": (lambda: torch.repeat_interleave(T, T.long()), "repeat_interleave"),
    "one_hot without a width": (lambda: torch.nn.functional.one_hot(T.long()), "_local_scalar_dense"),
    "torch.equal": (lambda: torch.equal(T, T.clone()), "equal"),
    "allclose": (lambda: torch.allclose(T, T), "allclose"),
    "tolist": (lambda: T.tolist(), "tolist"),
    "a print": (lambda: repr(T), "repr"),
}

WORK: dict[str, Callable[[], Any]] = {
    "arithmetic with 0-d tensors": lambda: T * T[0] + T[1] / (T[2] + 1e-6),
    "where": lambda: torch.where(MASK, T, 0.0),
    "a mask as numbers": lambda: (T * MASK).sum(),
    "masked_fill": lambda: T.clone().masked_fill_(MASK, 0.0),
    "gather": lambda: T.gather(0, T.long()),
    "an index of integers": lambda: T[T.long()],
    "a slice": lambda: T[1:],
    "repeats of known number": lambda: torch.repeat_interleave(T, T.long(), output_size=3),
    "a shape": lambda: T.numel() + len(T) + T.shape[0],
    "clipping": lambda: torch.clamp(0.5 / (T.norm() + 1e-6), max=1.0),
    "foreach": lambda: torch._foreach_norm([T, T]),
    "an optimizer": lambda: torch._fused_sgd_(
        [T.clone()], [T], [T.clone()], weight_decay=0.1, momentum=0.9, lr=0.1, dampening=0.0, nesterov=False,
        maximize=False, is_first_step=False, found_inf=torch.zeros(1),
    ),
    "a constant of the host": lambda: torch.tensor(0.5) * T,
    "what is on the host for good": lambda: T.long().numpy() + np.ones(3),
}  # fmt: skip


@pytest.mark.parametrize("name", READS)
def test_a_read_of_the_device_is_refused_with_its_name_and_line(name: str) -> None:
    read, op = READS[name]
    line = read.__code__.co_firstlineno
    with pytest.raises(HostReadError) as refused, no_host_reads("region update, op opt.update"):
        read()
    said = str(refused.value)
    assert said.startswith(f"region update, op opt.update: {op}") and "reads a device value on the host" in said
    assert re.search(rf"\({re.escape(__file__)}:{line}: ", said)
    assert "\n" not in said and said.endswith("keep it on the device, or read it in a log step")
    read()  # outside it is nobody's business


@pytest.mark.parametrize("name", WORK)
def test_work_on_the_device_goes_on(name: str) -> None:
    with no_host_reads():
        WORK[name]()


def test_a_read_in_the_backward_of_a_function_is_seen() -> None:
    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return g * g.sum().item()

    x = torch.ones(3, requires_grad=True)
    with pytest.raises(HostReadError, match=r"test_guards\.py:\d+: return g \* g\.sum\(\)\.item"), no_host_reads():
        torch.autograd.grad(Reads.apply(x).sum(), x)


def test_a_planted_read_is_refused_with_the_op_and_the_line_of_its_kernel() -> None:
    def careless(rt: Any, g: list[Tensor], hyper: Any) -> Any:
        total = grads.norm(rt, g)
        if total.item() > hyper["max_norm"]:  # the planted line
            grads.scale(rt, g, hyper["max_norm"])
        return g, total

    exe = open_program(spec("sgdm", 2), (Kernel("grads.clip", "careless", careless), *REFERENCE))
    state = exe.init(SEED)
    with pytest.raises(HostReadError) as refused:
        exe.step(state, HYPER)
    exe.close()
    said = str(refused.value)
    assert re.match(r"region \w*update\w*, op grads\.clip: _local_scalar_dense", said)
    assert f"{__file__}:" in said and "# the planted line" in said


def test_a_read_hidden_in_the_model_is_refused_as_the_forward_op() -> None:
    exe = open_program(spec())
    exe.rt.model.register_forward_hook(lambda module, images, logits: logits * float(logits.detach().max()))
    state = exe.init(SEED)
    with pytest.raises(HostReadError, match=r"region forward\w*, op model\.forward: .*logits\.detach"):
        exe.step(state, HYPER)
    with pytest.raises(HostReadError, match=r"region apply\w*, op model\.apply: "):
        exe.eval(state, 1)
    exe.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_shipped_recipe_trains_evaluates_and_logs_under_the_guard(precision: str) -> None:
    values: dict[str, Any] = {**load_recipe("digits"), "dataset": "digits-tune", "backend": "cpu", "dropout": 0.1}
    plan = make_plan(Config(**{**values, "precision": precision, "eval_batch_size": 64}))
    with Session(plan, find_origin(plan.config)) as session:
        exe = session.executable
        assert exe.rt.guard
        state = exe.init(SEED)
        for _ in range(2):
            state = exe.step(state, {"lr": 0.001, **session.config.hypers(0)})
        state, values = session.evaluate(state)
        assert values["total"] == 360 and exe.stats().host_reads == 1


@pytest.mark.parametrize("kernels", ["shipped", "reference"])
def test_the_step_of_the_original_recipe_runs_under_the_guard(kernels: str) -> None:
    step = Config(**{**load_recipe("imagenet1k_sgd"), "gradient_accumulation_steps": 2}).spec
    exe = open_program(step, shipped_kernels() if kernels == "shipped" else REFERENCE, micro_batch=4, dropout=0.1)
    assert exe.rt.guard
    exe.log(exe.eval(run(exe, 2), 1))
    exe.close()


def test_a_guard_that_is_off_costs_nothing() -> None:
    def region() -> None: ...

    on, off = open_program(spec()), open_program(spec(), guard=False)
    assert off.rt.region(region) is region and on.rt.region(region) is not region
    assert off.rt.grads_clip__reference.__func__ is grads.clip  # the very function, bound: no wrapper
    state = off.step(off.init(SEED), HYPER)
    off.rt.model.register_forward_hook(lambda module, images, logits: logits * float(logits.detach().max()))
    off.step(state, HYPER)
    assert off.rt.op == ""
    on.close()
    off.close()


def test_the_debug_level_turns_the_guard_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for level, guarded in (("0", False), ("1", True)):
        monkeypatch.setenv("VITCORE_DEBUG", level)
        plan = make_plan(config(tmp_path))
        with Session(plan, find_origin(plan.config)) as session:
            assert session.executable.rt.guard is guarded
