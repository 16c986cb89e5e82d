"""All of the recorded step but the calls of torch.cuda themselves: a graph that replays Python stands in for the device's."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from vitcore_cuda import graphs

from tests.cuda.conftest import built, hyper


class Replay:
    """Records a function; launching it runs it on the operands that it was recorded with."""

    def __init__(self) -> None:
        self.asides = self.launches = 0

    def aside(self, fn: Callable[[], Any]) -> Any:
        self.asides += 1
        return fn()

    def record(self, fn: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        out: list[Any] = []

        def launch() -> None:
            self.launches += 1
            out[:] = fn()

        return launch, out


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[graphs.Recorded]]:
    """What the fake backend records, by the name `recorded_step:capture`."""
    made: list[graphs.Recorded] = []

    def capture(rt: Any, fn: Any) -> graphs.Recorded:
        made.append(graphs.Recorded(rt, fn, Replay()))  # type: ignore[arg-type]
        return made[-1]

    module = types.ModuleType("recorded_step")
    module.capture = capture  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "recorded_step", module)
    yield made


# On the processor, with the kernels that it has in place of those of a GPU.
ON_HOST = {"disable_kernel": ("cudnn", "flash", "efficient", "fused", "beside")}


def cuda_on_host(**settings: Any) -> Any:
    change = {
        "device": "cpu",
        "open": None,
        "wait": None,
        "probe": None,
        "pinned": False,
        "capture": "recorded_step:capture",
    }
    return built("cuda", change, **{**ON_HOST, **settings})


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adamw"},
        {"optimizer": "sgdm", "precision": "bf16"},
        {"optimizer": "adamw", "dropout": 0.1, "ema": 0.9},
        {"optimizer": "sgdm", "max_grad_norm": 0.0, "layer_decay": 0.8, "freeze": "patch_embed"},
    ],
    ids=str,
)
def test_a_recorded_step_computes_what_a_plain_one_does(recorded: list, trained: Any, settings: dict) -> None:
    plain = trained(cuda_on_host(disable_pass=("capture_step",), **settings))
    assert not recorded
    told = trained(cuda_on_host(**settings))
    assert told[0] == plain[0]
    assert all(torch.equal(a, b) for a, b in zip(told[1], plain[1], strict=True))
    (step,) = recorded
    assert (step.graph.asides, step.graph.launches, step.recordings) == (graphs.WARM_UP, 12 - graphs.WARM_UP, 1)


@pytest.mark.parametrize("optimizer", ["sgdm", "adamw", "lamb", "lion", "muon"])
def test_rates_that_change_are_no_reason_to_record_anew(recorded: list, optimizer: str) -> None:
    exe = cuda_on_host(optimizer=optimizer, ema=0.9)
    state = exe.init(3)
    for step in range(8):
        state = exe.step(state, hyper(step))
    assert recorded[0].recordings == 1 and {"lr", "ema_keep"}.isdisjoint(recorded[0]._hyper.as_numbers)


def test_a_step_of_several_micro_batches_is_not_recorded(recorded: list, trained: Any) -> None:
    trained(cuda_on_host(optimizer="sgdm", gradient_accumulation_steps=2), 4)
    assert not recorded


def test_a_restored_state_is_copied_into_the_recorded_memory(recorded: list, trained: Any) -> None:
    exe = cuda_on_host(optimizer="adamw")
    state = exe.init(3)
    for step in range(6):
        state = exe.step(state, hyper(step))
    saved = {
        name: tuple(t.clone() for t in value) if isinstance(value, tuple) and torch.is_tensor(value[0]) else
        {k: tuple(t.clone() for t in v) if isinstance(v, tuple) else v.clone() for k, v in value.items()}
        if isinstance(value, dict) else value
        for name, value in exe.saved(state).items()
    }  # fmt: skip
    first = trained(exe, 4, state)
    second = trained(exe, 4, exe.restore(saved))
    assert first[0] == second[0]
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
    assert recorded[0].recordings == 1


def test_a_number_of_the_host_that_changes_is_recorded_anew(recorded: list) -> None:
    exe = cuda_on_host(optimizer="sgdm")
    state = exe.init(3)
    for step in range(5):
        state = exe.step(state, hyper(step))
    assert recorded[0].recordings == 1
    for step in range(3):
        state = exe.step(state, {**hyper(step), "weight_decay": 0.1})
    assert recorded[0].recordings == 2


def test_a_batch_of_another_shape_is_recorded_anew() -> None:
    held: list[int] = []
    step = graphs.Recorded(
        types.SimpleNamespace(device=torch.device("cpu"), draws_in_forward=False),
        lambda x: (held.append(len(x)),),
        Replay(),
    )  # type: ignore[arg-type]
    for size in (4, 4, 4, 4, 4, 2, 2):
        step(torch.zeros(size))
    assert step.recordings == 2 and held == [4, 4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 2}], ids=str)
def test_a_step_that_is_not_finite_leaves_nothing_to_the_next(recorded: list, settings: dict, monkeypatch: Any) -> None:
    """What lies between parameters in the buffer of gradients is in their norm, and was multiplied by what is not finite."""
    exe = cuda_on_host(optimizer="sgdm", **settings)
    assert exe.rt.layout.gaps()
    state, at = exe.init(3), exe.rt.feed._at
    poisoned = lambda cursor: (b := at(cursor))._replace(images=b.images.float() / 0)  # noqa: E731
    for step in range(7):
        monkeypatch.setattr(exe.rt.feed, "_at", poisoned if step == 2 else at)
        state = exe.step(state, hyper(step))
    _, report = exe.log(state)
    # Batches are read one ahead, so that those of one step's reading are of two steps where a step has two.
    assert report["steps"] == 7 and report["bad_steps"] == 1 + len(settings)
