"""A profiled step: the same bits, every op of the program under its name with what it took, and nothing left on."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rig import HYPER, SEED, assert_same_bits, config, open_program, run, shipped_kernels, spec, train
from torch.autograd import DeviceType

from vitcore.errors import VitcoreError
from vitcore.profiling.names import BETWEEN, OTHER, PHASES, STEP, WAIT, impl_of, op_of, phase_of, said
from vitcore.profiling.recorder import Profile
from vitcore.profiling.spans import Spans, read
from vitcore.profiling.table import table
from vitcore.runtime.codegen import call_name
from vitcore.runtime.executable import Executable
from vitcore.step.ir import Op, walk
from vitcore.step.ops import OPS


def calls(ops: tuple[Op, ...], times: int = 1) -> Counter[str]:
    """How often a run of the program calls each op's kernel, loops counted."""
    found: Counter[str] = Counter()
    for op in ops:
        found.update({op.name: times} if "impl" in op.attrs else {})
        found += calls(op.body, times * int(op.attrs.get("n", "1")))
    return found


def _plain(value: Any) -> Any:
    """A state in tuples of no special kind."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return tuple(map(_plain, value)) if isinstance(value, (tuple, list)) else value


def profiled(exe: Executable, folder: Path, steps: int = 5, first: int = 3, last: int = 4) -> tuple[Any, Profile]:
    state, profile = exe.init(SEED), Profile(exe, folder, first, last)
    for i in range(steps):
        assert profile.is_next == (first <= i + 1 <= last)
        state = profile.step(state, {**HYPER, "lr": HYPER["lr"] * (1 + i) / (1 + steps)})
    return state, profile


@pytest.mark.parametrize("kernels", ["reference", "shipped"])
def test_a_profile_changes_no_bit_and_leaves_nothing_on(kernels: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"dropout": 0.1} | ({"kernels": shipped_kernels()} if kernels == "shipped" else {})
    plain, looked = (open_program(spec("adamw", 2), **how) for _ in range(2))
    before = dict(vars(looked.rt))
    state, profile = profiled(looked, tmp_path / "profile")
    assert_same_bits(_plain(state), _plain(run(plain, 5)))
    after = vars(looked.rt)
    assert before.keys() == after.keys() and "mark" not in after
    assert all(after[name] is value for name, value in before.items() if callable(value) and "__" in name)
    assert not torch.autograd._profiler_enabled() and profile.spans is not None
    plain.close(), looked.close()


@pytest.mark.parametrize("kernels", ["reference", "shipped"])
def test_the_table_and_the_trace_have_every_op_of_the_program(kernels: str, tmp_path: Path) -> None:
    how: dict[str, Any] = {"kernels": shipped_kernels()} if kernels == "shipped" else {}
    exe = open_program(spec("sgdm", 3), **how)
    _, profile = profiled(exe, tmp_path / "profile")
    exe.close()
    spans = profile.spans
    assert spans is not None and spans.steps == 2
    counted = calls(exe.module["train"].ops)
    inner = {"model.forward": 3, "model.backward": 3} if "model.grad" in counted else {}
    assert {n: r.calls / 2 for n, r in spans.ops.items() if n not in (STEP, WAIT)} == {**counted, **inner}
    # Every microsecond is somebody's, and nobody's twice.
    assert sum(row.host for row in spans.ops.values()) == pytest.approx(spans.total, rel=0.02)
    assert all(row.host >= 0 for row in spans.ops.values()) and spans.device == 0
    written = (tmp_path / "profile" / "table.txt").read_text()
    assert written == profile.text() + "\n" and "device ms" not in written
    for op in walk(exe.module["train"].ops):
        if "impl" in op.attrs:
            assert re.search(rf"^  {re.escape(op.name)} +{op.attrs['impl']} +\d", written, re.M), op.name
    assert all(re.search(rf"^  {phase} +\d", written, re.M) for phase in PHASES) and BETWEEN in written
    # Products are where they are computed.
    assert {op for op, name in spans.inside if name == "aten::addmm"} == {"model.forward"}
    assert "model.backward" in {op for op, name in spans.inside if name == "aten::mm"}
    trace = json.loads(gzip.decompress((tmp_path / "profile" / "trace.json.gz").read_bytes()))
    named = Counter(e["name"] for e in trace["traceEvents"] if e.get("cat") == "user_annotation")
    assert {n: named[n] for n in spans.ops} == {n: r.calls for n, r in spans.ops.items()}


def event(
    name: str, begin: float, end: float, *, device: DeviceType = DeviceType.CPU, span: bool = False, **more: Any
) -> Any:
    """What torch's profiler gives for one thing that happened."""
    kernels = [SimpleNamespace(name=n, duration=d) for n, d in more.pop("kernels", {}).items()]
    return SimpleNamespace(
        name=name, time_range=SimpleNamespace(start=begin, end=end), device_type=device,
        is_user_annotation=span, kernels=kernels, self_cpu_time_total=end - begin, **more,
    )  # fmt: skip


def test_work_of_a_device_belongs_to_the_op_that_launched_it_whichever_thread_did() -> None:
    spans = read([
        event("model.apply", 0, 5, span=True),  # an evaluation before the step
        event("aten::mm", 1, 2, kernels={"gemm": 1000}),
        event("step", 10, 100, span=True, kernels={"step": 77}),  # the device's copy of an annotation
        event("model.grad", 20, 80, span=True),
        event("model.forward", 21, 40, span=True),
        event("aten::mm", 25, 26, kernels={"gemm": 300}),
        event("model.backward", 45, 75, span=True),
        event("aten::mm", 50, 51, thread=2, kernels={"gemm": 600, "split": 5}),  # autograd's own thread
        event("aten::add_", 77, 78, kernels={"add": 7}),
        event("opt.update", 85, 90, span=True),
        event("fused_sgd", 86, 87, kernels={"sgd": 40}),
        event("graph", 95, 96, kernels={"whole": 11}),
        event("rt.wait", 97, 99, span=True),
        event("mine", 30, 35, span=True),  # somebody's own annotation is none of ours
        event("gemm", 60, 360, device=DeviceType.CUDA),
        event("model.forward", 60, 360, device=DeviceType.CUDA, span=True),
    ])  # fmt: skip
    assert {n: r.device for n, r in spans.ops.items()} == {
        "step": 11, "model.grad": 7, "model.forward": 300, "model.backward": 605, "opt.update": 40, "rt.wait": 0,
    }  # fmt: skip
    assert {n: r.host for n, r in spans.ops.items()} == {
        "step": 90 - 60 - 5 - 2, "model.grad": 60 - 19 - 30, "model.forward": 19, "model.backward": 30, "opt.update": 5,
        "rt.wait": 2,
    }  # fmt: skip
    assert spans.steps == 1 and spans.total == 90 and spans.device == 963
    assert spans.inside["model.backward", "aten::mm"].device == 605 and ("step", "step") not in spans.inside
    said_ = table(spans, {"model.grad": "autograd"}, ["a note"])
    assert re.search(r"^  forward +0\.019 +21\.1 +0\.300 +31\.2$", said_, re.M)
    assert re.search(r"^  model\.grad +autograd +1 +0\.011 +12\.2 +0\.007 +0\.7$", said_, re.M)
    assert said_.index("aten::mm ") < said_.index("fused_sgd") and said_.endswith("a note")


def test_a_profile_of_nothing_has_no_steps() -> None:
    assert read([]) == Spans()


def test_one_place_names_what_is_timed() -> None:
    exe = open_program(spec())
    for program in exe.module.programs:
        for op in walk(program.ops):
            if "impl" in op.attrs:
                name = call_name(op)
                assert (op_of(name), impl_of(name)) == (op.name, op.attrs["impl"])
                assert said(name) == f"{op.name} by {op.attrs['impl']}"
    exe.close()
    in_no_phase = {name for name in OPS if phase_of(name) == OTHER and name.split(".")[0] not in ("metrics", "rng")}
    assert in_no_phase == {"model.init", "model.apply", "opt.init", "ema.init"}, "no ops of a training step"


def test_a_step_that_fails_under_the_profiler_leaves_nothing_on(tmp_path: Path) -> None:
    exe = open_program(spec())
    profile, state = Profile(exe, tmp_path / "profile", 1, 3), exe.init(SEED)
    name = call_name(next(op for op in walk(exe.module["train"].ops) if op.name == "opt.update"))
    good = vars(exe.rt)[name]

    def bad(*args: Any) -> Any:
        raise RuntimeError("planted")

    vars(exe.rt)[name] = bad
    with pytest.raises(RuntimeError, match="planted"):
        profile.step(state, HYPER)
    assert vars(exe.rt)[name] is bad and not torch.autograd._profiler_enabled()
    vars(exe.rt)[name] = good
    profile.close()
    assert profile.spans is None and not (tmp_path / "profile").exists()
    exe.close()


def test_a_run_is_the_same_with_a_profile_and_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vitcore.plan import make_plan
    from vitcore.training import Trainer

    plain = train(config(tmp_path, name="plain", num_steps=12))
    settings = config(tmp_path, name="looked", num_steps=12, profile=True, profile_steps=(5, 6))
    looked = Trainer(make_plan(settings)).run()
    assert "by op of the program\n" in capsys.readouterr().err
    assert (looked.accuracy, looked.loss, looked.steps) == (plain.accuracy, plain.loss, plain.steps)
    states = [tmp_path / n / "checkpoints" / "step-00000012" / "state.safetensors" for n in ("plain", "looked")]
    assert states[0].read_bytes() == states[1].read_bytes()
    assert sorted(p.name for p in (tmp_path / "looked" / "profile").iterdir()) == ["table.txt", "trace.json.gz"]
    assert (tmp_path / "looked" / "profile" / "table.txt").read_text().startswith("2 steps of ")
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_ends_early_writes_what_there_is(tmp_path: Path) -> None:
    from vitcore.plan import make_plan
    from vitcore.training import Trainer

    settings = config(tmp_path, num_steps=12, profile=True, profile_steps=(2, 9))
    Trainer(make_plan(settings), quiet=True, stop_at=4).run()
    assert (tmp_path / "run" / "profile" / "table.txt").read_text().startswith("3 steps of ")


@pytest.mark.parametrize(
    ("steps", "message"),
    [((5, 25), "--profile_steps 5 25 goes beyond the run's 24 steps"), ((0, 3), "--profile_steps 0 3 is no range"),
     ((4, 3), "--profile_steps 4 3 is no range")],
)  # fmt: skip
def test_steps_that_a_run_does_not_have_are_refused(steps: tuple[int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(VitcoreError, match=message):
        train(config(tmp_path, profile=True, profile_steps=steps))
