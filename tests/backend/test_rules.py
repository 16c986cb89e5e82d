"""Training rules and what a step may add: against independent formulas, and bit for bit against the plain program."""

from __future__ import annotations

import copy as copies
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, config, copy, digits, open_program, relative_error, run, spec
from safetensors.torch import load_file
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

import vitcore
from vitcore.backend import Backend
from vitcore.data.feed import Feed
from vitcore.errors import VitcoreError
from vitcore.model.loss import cross_entropy
from vitcore.plan import make_plan
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Executable, State
from vitcore.step.build import StepSpec
from vitcore.training import train

MORE = {**HYPER, "ema_keep": 0.8, "rho": 0.3}


def at(exe: Executable, state: State, kind: str) -> Any:
    """The state's value of a kind."""
    return next(v for s, v in zip(exe.module.state, state) if s.ty.kind == kind)


def ahead() -> Backend:
    """The cpu backend with the next batch put before the step runs."""
    return replace(load_plugins().backend("cpu"), prefetch=True)


# ---- the moving average ----


def test_the_average_is_timms_and_what_is_evaluated() -> None:
    exe = open_program(spec("adamw", ema=True))
    state = exe.init(SEED)
    holder = nn.Module()
    holder.w = nn.ParameterList(copies.deepcopy(p.detach()) for p in at(exe, state, "params"))
    timm = ModelEmaV3(holder, decay=0.8, foreach=False)
    for _ in range(5):
        state = exe.step(state, MORE)
        with torch.no_grad():
            for w, p in zip(holder.w, at(exe, state, "params")):
                w.copy_(p)
        timm.update(holder)
    average = at(exe, state, "ema")
    assert (
        relative_error(average, list(timm.module.w)) < 1e-6 < 1e-3 < relative_error(average, at(exe, state, "params"))
    )

    _, of_average = exe.log(exe.eval(state, 2))
    plain = open_program(spec("adamw"))
    for weights, same in ((average, True), (at(exe, state, "params"), False)):
        own = plain.restore({**plain.saved(plain.init(SEED)), plain.params_name: weights})
        report = plain.log(plain.eval(own, 2))[1]
        assert (report["eval_loss"] == of_average["eval_loss"]) is same


def test_an_average_that_a_refused_step_would_move_stays_to_the_bit() -> None:
    class Poisoned(Feed):
        def next_train(self, cursor: int) -> Any:
            batch, following = super().next_train(cursor)
            return batch._replace(images=batch.images * float("nan")), following

    feed = digits(8)
    feed.__class__ = Poisoned
    exe = open_program(spec("adamw", ema=True), feed=feed)
    state = exe.init(SEED)
    before = copy(at(exe, state, "ema"))
    assert_same_bits(at(exe, exe.step(state, MORE), "ema"), before)


def test_without_an_average_training_is_the_same_to_the_bit() -> None:
    one, other = open_program(spec("adamw")), open_program(spec("adamw", ema=True))
    assert_same_bits(at(one, run(one, 4), "params"), at(other, run(other, 4, ema_keep=0.5), "params"))


# ---- sharpness-aware minimisation ----


def by_hand(exe: Executable, state: State, feed: Feed, accumulation: int, steps: int) -> list[Tensor]:
    """SAM with SGD and momentum in float64, from the paper's algorithm 1, on the same batches."""
    model = copies.deepcopy(exe.rt.model).double().train()
    names = exe.rt.names
    params = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in zip(names, at(exe, state, "params")):
            params[name].copy_(value)
    momentum, cursor = {n: torch.zeros_like(params[n]) for n in names}, 0

    def gradients(batch: Any) -> dict[str, Tensor]:
        loss = cross_entropy(model(batch.images.double()), batch.labels, batch.weight.double())
        return dict(zip(names, torch.autograd.grad(loss, [params[n] for n in names])))

    for _ in range(steps):
        total = {n: torch.zeros_like(params[n]) for n in names}
        for _ in range(accumulation):
            batch, cursor = feed.next_train(cursor)
            here = gradients(batch)
            length = torch.sqrt(sum((g**2).sum() for g in here.values()))
            climb = {n: MORE["rho"] * g / length for n, g in here.items()}
            with torch.no_grad():
                for n in names:
                    params[n] += climb[n]
            there = gradients(batch)
            with torch.no_grad():
                for n in names:
                    params[n] -= climb[n]
                    total[n] += there[n] / accumulation
        length = torch.sqrt(sum((g**2).sum() for g in total.values()))
        factor = min(1.0, MORE["max_norm"] / (float(length) + 1e-6))
        with torch.no_grad():
            for n in names:
                momentum[n] = MORE["momentum"] * momentum[n] + total[n] * factor + MORE["weight_decay"] * params[n]
                params[n] -= MORE["lr"] * momentum[n]
    return [params[n] for n in names]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_sam_is_the_papers_algorithm(accumulation: int) -> None:
    exe = open_program(spec("sgdm", accumulation, sam=True))
    state = with_a_head(exe)
    feed = digits(8, accumulation)
    want = by_hand(exe, copy(state), feed, accumulation, 3)
    feed.close()
    start = copy(at(exe, state, "params"))
    for _ in range(3):
        state = exe.step(state, MORE)
    moved = [p - s for p, s in zip(at(exe, state, "params"), start)]
    assert relative_error(moved, [w - s.double() for w, s in zip(want, start)]) < 1e-4

    plain = open_program(spec("sgdm", accumulation))
    other = run_from(plain, start, 3)
    assert relative_error(other, want) > 1e-4, "the climb changed nothing, so this test would not see it missing"


def test_the_climb_leaves_the_parameters_as_they_were() -> None:
    exe = open_program(spec("sgdm", sam=True))
    state = with_a_head(exe)
    before = copy(at(exe, state, "params"))
    state = exe.step(state, {**MORE, "lr": 0.0})
    assert_same_bits(at(exe, state, "params"), before)


def with_a_head(exe: Executable) -> State:
    """A fresh state whose head is not zero, which would leave all gradients but its own at zero."""
    saved = exe.saved(exe.init(SEED))
    params = list(saved[exe.params_name])
    head = exe.rt.names.index("head.weight")
    params[head] = torch.randn(params[head].shape, generator=torch.Generator().manual_seed(1)) * 0.2
    return exe.restore({**saved, exe.params_name: tuple(params)})


def run_from(exe: Executable, params: Any, steps: int) -> Any:
    saved = exe.saved(exe.init(SEED))
    state = exe.restore({**saved, exe.params_name: params})
    for _ in range(steps):
        state = exe.step(state, MORE)
    return at(exe, state, "params")


# ---- the batch ahead ----


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("more", [{}, {"ema": True}, {"sam": True}], ids=["plain", "ema", "sam"])
def test_a_batch_put_ahead_changes_no_bit_and_a_checkpoint_says_the_same(
    accumulation: int, more: dict[str, bool]
) -> None:
    step = spec("adamw", accumulation, **more)
    plain, early = open_program(step), open_program(step, backend=ahead())
    one, other = (run_with(exe, exe.init(SEED), 4) for exe in (plain, early))
    assert_same_bits(plain.saved(one), early.saved(other))
    # And on from what was saved, in either direction.
    saved = copy(early.saved(other)), copy(plain.saved(one))
    one, other = (run_with(exe, exe.restore(values), 3) for exe, values in zip((plain, early), saved))
    assert_same_bits(plain.saved(one), early.saved(other))


def run_with(exe: Executable, state: State, steps: int) -> State:
    for _ in range(steps):
        state = exe.step(state, MORE)
    return state


def test_the_batch_ahead_is_read_before_the_step_computes() -> None:
    read: list[int] = []

    class Told(Feed):
        def next_train(self, cursor: int) -> Any:
            read.append(cursor)
            return super().next_train(cursor)

    feed = digits(8)
    feed.__class__ = Told
    exe = open_program(spec("sgdm"), feed=feed, backend=ahead())
    state = exe.init(SEED)
    assert read == [0]
    state = exe.step(state, MORE)
    assert read == [0, 8] and exe.saved(state)["c"] == 8
    exe.step(state, MORE)
    assert read == [0, 8, 16]


def test_an_evaluation_between_steps_changes_nothing_of_the_batch_ahead() -> None:
    step = StepSpec(name="t", optimizer="sgdm", ema=True)
    plain, early = open_program(step), open_program(step, backend=ahead())
    states = []
    for exe in (plain, early):
        state = run_with(exe, exe.init(SEED), 2)
        state, _ = exe.log(exe.eval(state, 2))
        states.append(run_with(exe, state, 2))
    assert_same_bits(plain.saved(states[0]), early.saved(states[1]))


# ---- whole runs ----


def test_a_run_with_an_average_evaluates_and_gives_away_the_average(tmp_path: Path) -> None:
    plan = make_plan(config(tmp_path, ema=0.9, dropout=0.0, augment_flip=True, num_steps=12, eval_every=12))
    result = train(plan, quiet=True)
    tensors = load_file(Path(str(result.checkpoint)) / "state.safetensors")
    loaded = dict(vitcore.load(result.run_dir).named_parameters())
    assert all(torch.equal(loaded[n.removeprefix("ema/")], t) for n, t in tensors.items() if n.startswith("ema/"))
    assert any(not torch.equal(loaded[n.removeprefix("params/")], t) for n, t in tensors.items() if n[:7] == "params/")


@pytest.mark.parametrize("more", [{"ema": 0.9}, {"sam_rho": 0.05}, {"drop_path": 0.2}, {"mixup": 0.8, "cutmix": 1.0},
                                  {"erase": 0.5, "augment_flip": True}, {"patch_dropout": 0.3}])  # fmt: skip
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(more: dict[str, Any], tmp_path: Path) -> None:
    settings = {"num_steps": 9, "eval_every": 0, "save_every": 3, **more}
    whole = train(make_plan(config(tmp_path / "whole", **settings)), quiet=True)
    cut = train(make_plan(config(tmp_path / "cut", **settings)), quiet=True, stop_at=4)
    assert cut.steps == 4
    rest = train(make_plan(config(tmp_path / "cut", **settings, resume=cut.run_dir)), quiet=True)
    assert_same_bits(*(load_file(Path(str(r.checkpoint)) / "state.safetensors") for r in (whole, rest)))


def test_mixing_in_odd_micro_batches_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match="even"):
        train(make_plan(config(tmp_path, mixup=0.2, train_batch_size=10, gradient_accumulation_steps=2)), quiet=True)
