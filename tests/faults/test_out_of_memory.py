"""No memory left: which op of the program asked for how much, what is largest, and what helps that is not set already."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcore.config import Config
from vitcore.doctor.exhausted import asked_for, is_exhausted
from vitcore.doctor.fitting import does_not_fit, free_memory, smaller_evaluation, smaller_step
from vitcore.errors import VitcoreError
from vitcore.plan import Plan, make_plan
from vitcore.plugins import load_plugins
from vitcore.step.ir import walk
from vitcore.training import Trainer

ACCELERATOR = "CUDA out of memory. Tried to allocate 20.25 GiB. GPU 0 has a total capacity of 79.11 GiB"
HOST = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes. Error code 12"  # noqa: E501


def plan(folder: Path, **settings: Any) -> Plan:
    small = {"dataset": "digits-tune", "num_steps": 3, "train_batch_size": 64, "eval_batch_size": 90, "threads": 1}
    return make_plan(Config(backend="cpu", output_dir=str(folder), **{**small, **settings}))


def failing(of: Plan, op: str, error: Exception) -> Plan:
    """The plan with a kernel that runs out of memory in place of the one that carries out an op."""
    impls = {o.attrs["impl"] for p in of.lowered.programs for o in walk(p.ops) if o.name == op}
    assert impls

    def raises(*args: Any, **kwargs: Any) -> Any:
        raise error

    kernels = tuple(replace(k, fn=raises) if k.op == op and k.name in impls else k for k in of.kernels)
    return replace(of, kernels=kernels)


@pytest.mark.parametrize(
    ("op", "program", "helps"),
    [
        ("model.grad", "train", "--gradient_accumulation_steps 2 (the same step in smaller parts) or --remat blocks"),
        ("opt.update", "train", "--gradient_accumulation_steps 2"),
        ("data.put", "train", "--gradient_accumulation_steps 2"),
        ("model.apply", "eval", "--eval_batch_size 45"),
        ("model.init", "init", "a smaller --img_size or --model_type"),
        ("opt.init", "init", "a smaller --img_size or --model_type"),
    ],
)
@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (lambda: torch.OutOfMemoryError(ACCELERATOR), "20.25 GiB"),
        (lambda: RuntimeError(HOST), "2.0 GiB"),
        (MemoryError, ""),
    ],
    ids=["accelerator", "host", "python"],
)
def test_the_op_that_asked_is_named(
    op: str, program: str, helps: str, error: Callable[[], Exception], asked: str, tmp_path: Path
) -> None:
    with pytest.raises(VitcoreError) as e:
        Trainer(failing(plan(tmp_path), op, error()), quiet=True).run()
    said = str(e.value)
    assert said.startswith(f"out of memory at {op} by ") and f" in @{program}" in said
    assert (f", which asked for {asked}. memory: parameters 154.7 KiB" in said) == bool(asked)
    assert "peak about" in said and "the largest tensors: blocks" in said and "numbers of 4 bytes" in said
    assert f"What helps: {helps}" in said


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Trainer(failing(plan(tmp_path), "opt.update", RuntimeError("shape mismatch")), quiet=True).run()


@pytest.mark.parametrize(
    ("message", "yes"),
    [(ACCELERATOR, True), (HOST, True), ("Allocation failed: out of memory on device", True), ("not enough memory", True),
     ("expected 2 sizes, got 3", False)],
)  # fmt: skip
def test_what_libraries_say(message: str, yes: bool) -> None:
    assert is_exhausted(RuntimeError(message)) == yes
    assert not is_exhausted(ValueError(message))


def test_how_much_was_asked_for() -> None:
    import numpy as np

    assert asked_for(RuntimeError("no number")) == ""
    with pytest.raises(MemoryError) as e:
        np.zeros((1 << 45,), np.float64)
    assert is_exhausted(e.value) and asked_for(e.value) == "256. TiB"


@pytest.mark.parametrize(
    ("settings", "remat", "helps"),
    [
        ({"train_batch_size": 64}, "none", ["--gradient_accumulation_steps 2 ", "--remat blocks ", "--precision bf16",
                                            "a --train_batch_size below 64"]),
        ({"train_batch_size": 96, "gradient_accumulation_steps": 8}, "blocks",
         ["--gradient_accumulation_steps 16 ", "--precision bf16", "a --train_batch_size below 96"]),
        ({"train_batch_size": 6, "gradient_accumulation_steps": 2, "precision": "bf16"}, "blocks",
         ["--gradient_accumulation_steps 6 ", "a --train_batch_size below 6"]),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 2, "precision": "bf16"}, "blocks",
         ["a --train_batch_size below 2"]),
        ({"train_batch_size": 1, "precision": "bf16"}, "blocks", ["a smaller --img_size or --model_type"]),
    ],
)  # fmt: skip
def test_what_helps_is_what_is_not_set_and_what_a_run_takes(
    settings: dict[str, Any], remat: str, helps: list[str]
) -> None:
    config, backend = Config(**settings), load_plugins().backend("cpu")
    said = smaller_step(config, backend, remat)
    assert all(part in said for part in helps) and said.count(" or ") == len(helps) - 1 + said.count("_size or --model")
    words = said.split()
    if "--gradient_accumulation_steps" in words:
        n = int(words[words.index("--gradient_accumulation_steps") + 1])
        assert replace(config, gradient_accumulation_steps=n).micro_batch < config.micro_batch


def test_an_evaluation_is_helped_by_smaller_batches() -> None:
    assert smaller_evaluation(Config(eval_batch_size=9)) == "--eval_batch_size 4"
    assert "--model_type" in smaller_evaluation(Config(eval_batch_size=1))


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """A machine with so many bytes free."""

    def only(free: int) -> None:
        monkeypatch.setattr("vitcore_cpu.memory.free_and_total", lambda: (free, 1 << 40))

    return only


def test_a_plan_that_does_not_fit_is_warned_of_and_one_that_does_is_not(
    little: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for free, warned in ((1 << 20, True), (1 << 30, False)):
        little(free)
        Trainer(plan(tmp_path, eval_every=0)).run()
        said = capsys.readouterr().err
        assert ("memory: parameters 154.7 KiB" in said) and said.count("memory: ") == 1
        assert ("warning: the step may run out of memory, as about " in said) == warned
        assert ("--gradient_accumulation_steps 2" in said) == warned
        assert ("of 1.0 MiB free" in said) == warned and ("of 1.0 GiB free" in said) != warned


@pytest.mark.parametrize(("free", "remat"), [(1 << 20, "blocks"), (1 << 30, "none")])
def test_auto_takes_blocks_where_memory_needs_it(
    free: int, remat: str, little: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    little(free)
    chosen = plan(tmp_path, remat="auto", eval_every=0)
    assert (
        ("remat=blocks" in chosen.show("lowered")) == (remat == "blocks") == ("remat='blocks'" in chosen.show("python"))
    )
    Trainer(chosen).run()
    said = capsys.readouterr().err
    assert f"remat {remat}: " in said and " are planned and 1.0 " in said
    # What was printed is what ran.
    assert (tmp_path / "run" / "step.lowered.txt").read_text() == chosen.show("lowered")


def test_auto_is_refused_where_nobody_knows_what_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitcore_cpu.memory.free_and_total", lambda: None)
    assert free_memory(load_plugins().backend("cpu")) is None
    with pytest.raises(
        VitcoreError, match="--remat auto: backend 'cpu' does not say how much memory is free; give --remat"
    ):
        plan(tmp_path, remat="auto")
    result = Trainer(plan(tmp_path, eval_every=0), quiet=True).run()
    assert result.steps == 3


def test_the_warning_names_both_numbers() -> None:
    said = does_not_fit(3 << 30, 1 << 30, Config(), load_plugins().backend("cpu"), "none")
    assert "about 3.0 GiB are planned and 1.0 GiB are free" in said


def test_comparing_ways_of_attention_says_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(shape: Any) -> dict[str, float]:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12"
        )

    monkeypatch.setattr("vitcore_cpu.attention.measure", measure)
    monkeypatch.setenv("VITCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        VitcoreError, match=r"out of memory while ways of computing attention were compared .* What helps: "
    ):
        plan(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limit is set beside what Linux says is used")
@pytest.mark.parametrize(
    ("more", "where"),
    [(("--train_batch_size", "512"), "out of memory at model."),
     (("--model_type", "ViT-L_16", "--train_batch_size", "2"), "out of memory ")],
)  # fmt: skip
def test_a_process_that_may_take_no_more_says_so_in_one_line(more: tuple[str, ...], where: str, tmp_path: Path) -> None:
    job = [sys.executable, str(Path(__file__).with_name("memory_job.py")), "700"]
    args = ["--backend", "cpu", "--dataset", "synthetic", "--model_type", "ViT-Ti_16", "--img_size", "64", "--num_steps", "2",
            "--workers", "0", "--threads", "1", "--output_dir", str(tmp_path), "--disable_kernel", "all", *more]  # fmt: skip
    done = subprocess.run([*job, *args], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "VITCORE_DEBUG": "0"})  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"vitcore: error: {where}") and "What helps: " in line
    assert ("the largest tensors: " in line) == ("while ways" not in where)
