"""The executable: what it counts, what identifies it, what it hands out, how it closes; strangers' kernels in it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, config, copy, open_program, run, shipped_kernels, spec

from vitcore.api import hookimpl, kernel
from vitcore.backend import Kernel
from vitcore.errors import VitcoreError
from vitcore.origin import find_origin
from vitcore.plan import make_plan
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Stats
from vitcore.runtime.reference import REFERENCE
from vitcore.session import Session
from vitcore.step.build import build


def test_it_counts_what_it_did() -> None:
    exe = open_program(spec("adamw", 2), shipped_kernels())
    assert exe.stats() == Stats(0, 0, 0, 0, 0, 0)
    state = run(exe, 3)
    state = exe.eval(state, 2)
    assert exe.stats() == Stats(steps=3, marks=0, flushes=0, host_reads=0, reductions=0, bytes_reduced=0)
    state, _ = exe.log(state)
    state, _ = exe.log(run(exe, 1, state))
    assert exe.stats() == Stats(steps=4, marks=0, flushes=0, host_reads=2, reductions=0, bytes_reduced=0)
    exe.close()


def test_a_log_reads_everything_once_and_starts_afresh() -> None:
    exe = open_program(spec())
    state, report = exe.log(exe.eval(run(exe, 4), 3))
    assert report["steps"] == report["loss_n"] == report["grad_norm_n"] == 4 and report["bad_steps"] == 0
    assert report["eval_total"] == 150 and 0 < report["loss"] / 4 < 4 and report["grad_norm"] > 0
    assert exe.stats().host_reads == 1
    assert {*exe.log(state)[1].values()} == {0.0}
    exe.close()


def test_loss_and_metrics_stay_on_the_device_until_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    exe = open_program(spec("sgdm", 2))
    read = []
    monkeypatch.setattr(exe.rt, "read", lambda values: read.append(values) or values.tolist())
    state = run(exe, 5)
    metrics = state[4]
    assert read == [] and all(isinstance(v, torch.Tensor) and v.ndim == 0 for v in metrics.values())
    assert not any(v.requires_grad for v in metrics.values())  # else every step's graph would be kept
    _, report = exe.log(state)
    exe.close()
    assert len(read) == 1 and read[0].shape == (len(report),)


def test_the_fingerprint_follows_the_text_and_the_precision_and_not_the_clock() -> None:
    def print_of(*args: Any, **how: Any) -> str:
        exe = open_program(spec(*args), **how)
        exe.close()
        return exe.fingerprint

    first = print_of()
    time.sleep(0.01)
    assert print_of() == first and len(first) == 16 and int(first, 16) >= 0
    others = [print_of("adamw"), print_of("sgdm", 2), print_of(precision="bf16"), print_of(kernels=shipped_kernels()),
              print_of(disabled=["form_regions"])]  # fmt: skip
    assert len({first, *others}) == 6
    ran = open_program(spec())
    run(ran, 2)
    ran.close()
    assert ran.fingerprint == first


def test_closing_twice_is_no_error_and_stops_the_reading_ahead() -> None:
    exe = open_program(spec())
    state = run(exe, 1)
    exe.close()
    exe.close()
    with pytest.raises(VitcoreError, match="the train feed is closed"):
        exe.step(state, HYPER)
    exe.log(state)  # what is on the device can still be read


def test_state_that_is_handed_in_is_consumed() -> None:
    """What comes out may be the same memory: only the newest state is good."""
    exe = open_program(spec("adamw"), shipped_kernels())
    old = exe.init(SEED)
    kept = copy(old)
    new = exe.step(old, HYPER)
    assert all(a is b for a, b in zip(old[0], new[0], strict=True))  # donated, so updated in place
    assert any(not torch.equal(a, b) for a, b in zip(kept[0], new[0], strict=True))
    assert new[0] is not kept[0] and [v.name for v in exe.module.state] == ["p", "o", "c", "k", "m"]
    assert (old[2], new[2], new[3]) == (0, 8, old[3])  # the cursor is a plain number, the key has no state
    exe.close()


def test_an_evaluation_borrows_the_parameters_and_leaves_the_training_alone() -> None:
    ends = []
    for evaluations in (0, 2):
        exe = open_program(spec("adamw"), dropout=0.1)
        state = run(exe, 2)
        before = copy(state[:4])
        for _ in range(evaluations):
            state, _ = exe.log(exe.eval(state, 3))
        assert_same_bits(copy(state[:4]), before)
        ends.append(copy(run(exe, 2, state)[:4]))
        exe.close()
    assert_same_bits(*ends)


def test_two_executables_in_one_process_do_not_share_a_thing() -> None:
    alone = open_program(spec())
    want = copy(run(alone, 3))
    one, other = open_program(spec()), open_program(spec("adamw"))
    a, b = one.init(SEED), other.init(SEED)
    for i in range(3):
        lr = HYPER["lr"] * (1 + i) / 4
        a, b = one.step(a, {**HYPER, "lr": lr}), other.step(b, {**HYPER, "lr": lr})
    assert_same_bits(copy(a), want)
    for exe in (alone, one, other):
        exe.close()


def test_what_is_not_lowered_is_refused_and_a_missing_hyper_is_named() -> None:
    exe = open_program(spec())
    with pytest.raises(VitcoreError, match="@init is not sealed; lower the module before it is run"):
        type(exe)(build(spec()), exe.rt.backend, REFERENCE, exe.rt.model, None)
    with pytest.raises(KeyError, match="max_norm"):
        exe.step(exe.init(SEED), {k: v for k, v in HYPER.items() if k != "max_norm"})
    exe.close()


def test_a_parameter_without_a_group_is_refused_by_name() -> None:
    from vitcore.step.ir import Group

    with pytest.raises(VitcoreError, match=r"parameter 'blocks\.0\.\S+' is in no parameter group; add a group"):
        open_program(spec(groups=(Group("heads", r"^head"),)))


def test_the_source_that_is_printed_is_what_runs() -> None:
    exe = open_program(spec("sgdm", 2))
    assert "for _ in range(2):" in exe.source and "rt.opt_update__reference(" in exe.source
    for program in ("init", "train", "eval", "log", "restore"):
        assert f"def {program}(" in exe.source
    exe.rt.grads_add__reference = lambda *a: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError) as raised:
        exe.step(exe.init(SEED), HYPER)
    exe.close()
    lines = [
        str(entry.statement).strip() for entry in raised.traceback if "<vitcore lowered:cpu @train>" in str(entry.path)
    ]
    assert lines and all(line in exe.source for line in lines)
    assert "rt.grads_add__reference(" in lines[-1]


# ---- kernels of strangers ----


def test_a_kernel_may_call_reference_kernels_that_the_program_does_not_name() -> None:
    calls = []

    @kernel("opt.update", when=lambda op, world: op.args[1].ty.has("sgdm") or "it knows sgdm alone")
    def counted(rt: Any, *args: Any) -> Any:
        calls.append(len(args))
        return rt.opt_update__reference(*args)

    plain, exe = open_program(spec()), open_program(spec(), (counted, *REFERENCE))
    assert "opt.update" in str(exe.module) and "impl=counted" in str(exe.module)
    assert "opt_update__reference" not in exe.source
    assert_same_bits(copy(run(exe, 3)), copy(run(plain, 3)))
    assert calls == [5, 5, 5]
    assert "impl=counted" not in str(open_program(spec("adamw"), (counted, *REFERENCE)).module)


def test_of_two_kernels_of_one_name_the_first_is_called() -> None:
    calls = []

    def claim(tag: str) -> Kernel:
        def update(rt: Any, *args: Any) -> Any:
            calls.append(tag)
            return args[:2]

        return Kernel("opt.update", "mine", update)

    exe = open_program(spec(), (claim("first"), claim("second"), *REFERENCE))
    run(exe, 1)
    exe.close()
    assert calls == ["first"]


def test_a_plugin_registered_in_the_process_claims_an_op(tmp_path: Path) -> None:
    calls = []

    @kernel("grads.clip")
    def tallied(rt: Any, *args: Any) -> Any:
        calls.append(1)
        return rt.grads_clip__foreach(*args)

    class Plugin:
        @hookimpl
        def vitcore_kernels(self, backend: str) -> list[Kernel]:
            return [tallied] if backend == "cpu" else []

    manager, plugin, settings = load_plugins().manager, Plugin(), config(tmp_path, dropout=0.0)
    before = make_plan(settings)
    manager.register(plugin, name="tally")
    try:
        plan = make_plan(settings)
    finally:
        manager.unregister(plugin)
    assert "impl=tallied" in plan.show("lowered") and "impl=tallied" not in before.show("lowered")
    assert plan.kernels[0] is tallied and make_plan(settings).kernels == before.kernels
    ends = []
    for each in (plan, before):
        with Session(each, find_origin(each.config)) as session:
            state = session.executable.init(SEED)
            for _ in range(2):
                state = session.executable.step(state, {**HYPER, "max_norm": 1.0})
            ends.append(copy(state))
    assert_same_bits(*ends)
    assert len(calls) == 2


def test_a_kernel_that_cannot_be_imported_is_named_before_any_step(tmp_path: Path) -> None:
    broken = Kernel("grads.clip", "vendor", "vitcore_nowhere:clip")
    with pytest.raises(
        VitcoreError, match="'vitcore_nowhere:clip' cannot be resolved: No module named 'vitcore_nowhere'"
    ):
        open_program(spec(), (broken, *REFERENCE))
    # One that is only offered, and not chosen, is nobody's business.
    open_program(spec(), (replace(broken, when=lambda op, world: "not here"), *REFERENCE)).close()
