"""The head probed alone, then fine-tuning from it: two runs of one command, resumed and stopped in either."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from vitcore import stages
from vitcore.commandline import resolve_config

Vit = Callable[..., Any]
# Two stages of a second: four steps of the head alone, then three of all.
PROBED = (
    "--threads 1 --backend cpu --dataset digits-tune --name run --num_steps 3 --probe_steps 4 --train_batch_size 16 "
    "--eval_batch_size 360 --eval_every 0 --warmup_steps 0 --learning_rate 0.001 --probe_learning_rate 0.02"
).split()
RUN = Path("output/run")


def tensors(folder: Path, step: int) -> dict[str, Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """The names of parameters that are equal."""
    return {n for n, t in one.items() if n.startswith("params/") and t.equal(other[n])}


def stopped(argv: list[str], at: int) -> Any:
    """A run that ends after a step of its first stage, as a signal would end it."""
    return stages.run(resolve_config(argv, "vitcore train", "").config, say=lambda line: None, quiet=True, stop_at=at)


@pytest.fixture
def whole(vit: Vit) -> dict[str, Tensor]:
    """The end of a run that was not stopped, as another name."""
    assert vit("train", *PROBED, "--output_dir", "whole").code == 0
    return tensors(Path("whole/run"), 3)


def test_two_stages_end_as_one_run_and_say_what_they_do(vit: Vit) -> None:
    done = vit("train", *PROBED, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert (result["steps"], result["run_dir"]) == (3, "output/run")
    assert result["checkpoint"] == "output/run/checkpoints/step-00000003"
    random, one, two = [n for n in done.notes if "stage" in n or "RANDOM" in n]
    assert "RANDOM features" in random and "tests only" in random
    assert one == "stage 1 of 2: the head alone, 4 steps at a learning rate of 0.02"
    assert two == "stage 2 of 2: fine-tuning from output/run/probe/checkpoints/step-00000004, its head included"
    probe, tuned = tensors(RUN / "probe", 4), tensors(RUN, 3)
    assert {n for n in probe if n.startswith("opt/") and "head" not in n} <= {"opt/step"}
    assert len(same(probe, tuned)) == 0  # everything was fine-tuned
    said = json.loads((RUN / "probe" / "config.json").read_text())
    assert (said["learning_rate"], said["num_steps"], said["freeze"]) == (0.02, 4, r"^(?!head\.)")
    assert "frozen=yes" in (RUN / "probe" / "step.txt").read_text() and "frozen" not in (RUN / "step.txt").read_text()
    rates = [
        json.loads(line)["lr"] for line in (RUN / "probe" / "metrics.jsonl").read_text().splitlines() if "lr" in line
    ]
    assert rates and 0 < rates[-1] < 0.02  # its own schedule, at its last step


def test_stage_one_moves_the_head_alone_and_stage_two_begins_at_its_end(vit: Vit) -> None:
    rate_zero = [*PROBED, "--learning_rate", "0"]
    assert vit("train", *rate_zero).code == 0  # so stage two ends where it began
    probe, tuned = tensors(RUN / "probe", 4), tensors(RUN, 3)
    assert same(probe, tuned) == {n for n in probe if n.startswith("params/")}
    assert vit("train", *rate_zero, "--probe_steps", "0", "--name", "alone").code == 0
    drawn = tensors(Path("output/alone"), 3)
    assert {*probe} >= same(drawn, probe) == {n for n in same(probe, tuned) if "head" not in n}
    assert probe["params/head.weight"].any() and not drawn["params/head.weight"].any()


def test_weights_that_are_given_are_probed_without_a_word_of_chance(vit: Vit) -> None:
    assert vit("train", *PROBED, "--probe_steps", "0", "--name", "first").code == 0
    done = vit("train", *PROBED, "--pretrained_dir", "output/first", "--learning_rate", "0")
    assert done.code == 0 and "RANDOM" not in done.err, done.err
    first, probe, tuned = tensors(Path("output/first"), 3), tensors(RUN / "probe", 4), tensors(RUN, 3)
    assert same(first, probe) == {n for n in same(probe, tuned) if "head" not in n}
    assert len(same(probe, tuned)) == len([n for n in probe if n.startswith("params/")])


@pytest.mark.parametrize("path", ["output/run", "output/run/probe", "output/run/probe/checkpoints/step-00000002"])
def test_a_run_that_stopped_in_stage_one_goes_on_from_its_folder_or_the_probes(
    vit: Vit, whole: dict[str, Tensor], path: str
) -> None:
    result = stopped(PROBED, at=2)
    assert (result.steps, result.run_dir) == (2, "output/run/probe") and not (RUN / "checkpoints").exists()
    done = vit("train", *PROBED, "--resume", path)
    assert done.code == 0 and "from step 2 to 4" in done.err and "from step 0 to 3" in done.err, done.err
    assert len(same(whole, tensors(RUN, 3))) == len([n for n in whole if n.startswith("params/")])


def test_a_run_that_stopped_in_stage_two_goes_on_there(vit: Vit, whole: dict[str, Tensor]) -> None:
    assert vit("train", *PROBED).code == 0
    end = RUN / "checkpoints" / "step-00000003"
    assert vit("train", *PROBED, "--save_every", "1", "--keep_checkpoints", "5").code == 0
    for left in (end, RUN / "checkpoints" / "best"):
        left.rename(RUN / left.name)
    done = vit("train", *PROBED, "--resume", "output/run")
    assert done.code == 0 and "from step 2 to 3" in done.err and "stage" not in done.err, done.err
    assert len(same(whole, tensors(RUN, 3))) == len([n for n in whole if n.startswith("params/")])


def test_the_probe_that_is_resumed_begins_stage_two_anew(vit: Vit) -> None:
    assert vit("train", *PROBED).code == 0
    before = tensors(RUN, 3)
    done = vit("train", *PROBED, "--resume", "output/run/probe", "--num_steps", "2")
    assert done.code == 0 and "stage 2 of 2" in done.err and "are now in output/run/checkpoints-earlier-1" in done.err
    assert not same(before, tensors(RUN, 2))


def test_a_signal_in_stage_one_ends_the_whole_run(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "vitcore.train", *PROBED, "--probe_steps", "100000", "--log_every", "5"]
    child = subprocess.Popen(argv, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics, patience = tmp_path / RUN / "probe" / "metrics.jsonl", time.monotonic() + 60
    while time.monotonic() < patience and not (metrics.is_file() and metrics.read_text()):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, err
    assert "go on with --resume output/run/probe" in err and "stage 2" not in err and "Traceback" not in err
    assert not (tmp_path / RUN / "checkpoints").exists()


def test_two_ranks_go_through_both_stages_together(tmp_path: Path) -> None:
    """The ranks stay in one group: what is joined anew could meet its own past in the launcher's store."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    done = subprocess.run(
        [*torchrun, "vitcore.train", *PROBED], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("stage 2 of 2") == 1 and done.stderr.count("ranks: 2") == 2, done.stderr
    assert tensors(tmp_path / RUN, 3)


def test_both_programs_are_printed(vit: Vit) -> None:
    done = vit("train", *PROBED, "--print-step")
    first, second = done.out.split("// stage 2 of 2: fine-tuning\n")
    assert first.startswith("// stage 1 of 2: the head alone\nmodule @") and "frozen=yes" in first
    assert second.startswith("module @") and "frozen" not in second
    python = vit("train", *PROBED, "--print-step", "python").out
    compile(python, "printed", "exec")
    assert python.count("def train(") == 2 and "# stage 1 of 2" in python
    assert "stage" not in vit("train", *PROBED, "--probe_steps", "0", "--print-step").out
