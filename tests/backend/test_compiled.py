"""The leaf `compiled` on a processor: how often it compiles, that its numbers are the program's, and how it fails.

torch's own tracing stands in for the whole compiler where only that is asked: `aot_eager` traces forward and backward as inductor
is given them, and writes no C++.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch._dynamo
from rig import HYPER, SEED, cpu, digits, lowered, spec
from torch._dynamo.utils import counters

from vitcore.backend import Backend
from vitcore.errors import VitcoreError
from vitcore.model.vit import build_model
from vitcore.plan import choose_kernels
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Executable

DEPTH = 12
TRACED = replace(cpu(), compiler="aot_eager")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before, and nothing left of it."""
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        if not _:
            yield


def opened(backend: Backend, *, compiled: bool = True, precision: str = "fp32", **of_step: Any) -> Executable:
    """Twelve blocks on digits."""
    kernels, _ = choose_kernels(load_plugins(), backend, (), ("compiled",) if compiled else ())
    step = spec("adamw", **of_step)
    module = lowered(step, kernels, backend=backend, precision=precision)
    assert ("impl=compiled" in str(module)) is compiled
    model = build_model("ViT-digits", 8, 10, dropout=0.0, depth=DEPTH)
    return Executable(module, backend, kernels, model, digits(8, step.accumulation), guard=False)


def run(exe: Executable, steps: int, *, evaluate_after: int = -1) -> Any:
    state = exe.init(SEED)
    for number in range(steps):
        state = exe.step(state, {**HYPER, "lr": 0.01 / (number + 1)})
        if number == evaluate_after:
            state = exe.eval(state, 1)
    return state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_twelve_blocks_are_compiled_twice_for_training_and_twice_for_evaluation(
    precision: str, accumulation: int
) -> None:
    # All blocks but the last are one graph, the last, of which the class token alone is read, another. bf16 hands each block
    # narrow copies of its weights, which is not what it was built with.
    exe = opened(TRACED, precision=precision, accumulation=accumulation)
    run(exe, 1)
    assert counters["stats"]["unique_graphs"] == 2, "for training"
    run(exe, 4, evaluate_after=1)
    assert counters["stats"]["unique_graphs"] == 4, (
        "and for evaluation; nothing for a step, a rate or a step after an evaluation"
    )
    assert not counters["graph_break"] and not counters["unimplemented"]
    assert counters["frames"] == {"total": 4, "ok": 4}


def test_a_second_model_of_the_same_shape_compiles_nothing_more_than_the_first() -> None:
    run(opened(TRACED), 1)
    run(opened(TRACED), 1)
    assert counters["stats"]["unique_graphs"] <= 4


def test_its_numbers_are_those_of_the_program() -> None:
    compiled, plain = (opened(TRACED, compiled=c) for c in (True, False))
    ours, theirs = (exe.saved(run(exe, 3))[exe.params_name] for exe in (compiled, plain))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    start = [p.clone() for p in plain.saved(plain.init(SEED))[plain.params_name]]
    assert any(not torch.equal(a, b) for a, b in zip(start, run(plain, 3)[0], strict=True)), "it trains"


def fails(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("g++: fatal error: Killed signal\n  and much more below")


@pytest.mark.parametrize("program", ["train", "eval"])
def test_what_a_compiler_raises_is_one_sentence(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import register_backend
    from torch._dynamo.backends.registry import list_backends

    if "vitcore_fails" not in list_backends(exclude_tags=()):
        register_backend(fails, name="vitcore_fails")
    exe = opened(replace(cpu(), compiler="vitcore_fails"))
    state = exe.init(SEED)
    with pytest.raises(VitcoreError) as caught:
        exe.step(state, HYPER) if program == "train" else exe.eval(state, 1)
    said = str(caught.value)
    assert said.startswith("backend 'cpu': torch.compile by 'vitcore_fails' failed: ") and "\n" not in said
    assert "g++: fatal error: Killed signal" in said and said.endswith(
        "run without --compile, or with --disable_kernel compiled"
    )


def test_what_the_model_raises_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    exe = opened(TRACED)
    exe.rt.model.img_size = (9, 9)
    with pytest.raises(VitcoreError, match=r"pictures of shape \(1, 8, 8\) for a model of \(1, 9, 9\)"):
        exe.step(exe.init(SEED), HYPER)
