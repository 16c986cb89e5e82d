"""What a run prints and leaves behind, read back by those who will read it: scripts, people, TensorBoard, evaluate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest

from vitcore import cli

STEPS, LOG_EVERY, EVAL_EVERY, SAVE_EVERY = 12, 4, 6, 3
LOGGED = [3, 4, 6, 8, 9, 12]  # before each evaluation and checkpoint too
RESULT = {"accuracy", "correct", "total", "loss", "steps", "train_seconds", "images_per_second", "input_wait", "backend",
          "checkpoint", "run_dir", "interrupted_by", "seconds_to_first_step"}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shell_in: Callable[..., Any]) -> tuple[Path, Any]:
    """A run through `python -m vitcore`, with nothing of a terminal: the folder it ran in and how it ended."""
    folder = tmp_path_factory.mktemp("run")
    done = shell_in(
        folder, "-m", "vitcore", "train", "--threads", 1, "--num_steps", STEPS, "--train_batch_size", 32,
        "--gradient-accumulation-steps", 2, "--eval_batch_size", 100, "--log_every", LOG_EVERY,
        "--eval_every", EVAL_EVERY, "--warmup_steps", 0, "--save_every", SAVE_EVERY, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder, done


def result(run: tuple[Path, Any]) -> dict[str, Any]:
    last: dict[str, Any] = json.loads(run[1].out.splitlines()[-1])
    return last


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_with_json_the_last_line_is_one_object_with_the_promised_keys(run: tuple[Path, Any]) -> None:
    found = result(run)
    assert set(found) == RESULT
    assert run[1].out.count("\n") == 1
    assert (found["steps"], found["total"], found["backend"], found["interrupted_by"]) == (STEPS, 360, "cpu", None)
    assert found["accuracy"] == 100 * found["correct"] / 360
    assert found["loss"] > 0 and found["train_seconds"] > 0 and found["images_per_second"] > 0
    assert found["run_dir"] == os.path.join("output", "digits")
    assert found["checkpoint"] == os.path.join("output", "digits", "checkpoints", f"step-{STEPS:08d}")
    assert (run[0] / found["checkpoint"] / "state.safetensors").is_file()


def test_a_log_has_plain_lines_that_say_what_was_chosen_and_why(run: tuple[Path, Any]) -> None:
    lines = run[1].err.splitlines()
    assert not [c for c in run[1].err if ord(c) < 32 and c != "\n"], "control characters"
    assert lines[0].startswith("backend cpu (the first that can run here; passed over: hpu-eager (")
    assert any("precision fp32" in line for line in lines)
    logs = [line for line in lines if line.startswith("step ") and " loss " in line and " left " in line]
    assert [line.split()[1] for line in logs] == [f"{n}/{STEPS}" for n in LOGGED]
    evals = [line for line in lines if "accuracy" in line]
    assert len(evals) == 2 and evals[-1].startswith(f"step {STEPS}: accuracy ") and " of 360)" in evals[-1]


def test_the_run_folder_holds_what_ran(run: tuple[Path, Any]) -> None:
    folder = run[0] / result(run)["run_dir"]
    files = {p.name for p in folder.iterdir()}
    assert files == {"config.json", "step.txt", "step.lowered.txt", "step.py", "fingerprint.txt", "metrics.jsonl",
                     "tensorboard", "checkpoints"}  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert (config["backend"], config["recipe"], config["num_steps"], config["name"]) == ("cpu", "digits", 12, "digits")
    assert "step @train(" in (folder / "step.txt").read_text() and "{n=2}" in (folder / "step.txt").read_text()
    assert "lowered:cpu @train(" in (folder / "step.lowered.txt").read_text()
    compile((folder / "step.py").read_text(), "step.py", "exec")
    assert len((folder / "fingerprint.txt").read_text().strip()) == 16
    kept = sorted(p.name for p in (folder / "checkpoints").iterdir())
    assert kept == ["best", "step-00000009", "step-00000012"], "the newest two of four, and the best"
    facts = json.loads((folder / "checkpoints" / "step-00000012" / "state.json").read_text())["facts"]
    assert facts["images_per_step"] == 32, "the batch size is before division by the accumulation"


def test_the_step_that_was_written_is_the_one_that_the_command_line_prints(
    run: tuple[Path, Any], train: Callable[..., Any]
) -> None:
    folder = run[0] / result(run)["run_dir"]
    argv = "--train_batch_size 32 --gradient-accumulation-steps 2 --threads 1"
    for stage, file in (("text", "step.txt"), ("lowered", "step.lowered.txt"), ("python", "step.py")):
        assert train(argv, f"--print-step={stage}").out.rstrip("\n") == (folder / file).read_text().rstrip("\n"), stage


def test_metrics_as_lines_have_every_log_and_evaluation_and_agree_with_the_result(run: tuple[Path, Any]) -> None:
    found = result(run)
    lines = events(run[0] / found["run_dir"])
    steps = {kind: [e["step"] for e in lines if e["event"] == kind] for kind in ("train", "eval", "checkpoint")}
    assert steps == {"train": LOGGED, "eval": [6, 12], "checkpoint": [3, 6, 9, 12]}
    last = [e for e in lines if e["event"] == "eval"][-1]
    assert {k: last[k] for k in ("accuracy", "correct", "total", "loss")} == {
        k: found[k] for k in ("accuracy", "correct", "total", "loss")
    }
    for e in lines:
        if e["event"] == "train":
            assert {"loss", "lr", "grad_norm", "images_per_second"} <= set(e)


def test_tensorboard_reads_the_same_numbers(run: tuple[Path, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run[0] / result(run)["run_dir"]
    board = EventAccumulator(str(folder / "tensorboard")).Reload()
    written = {
        (f"{e['event']}/{name}", e["step"]): value
        for e in events(folder)
        for name, value in e.items()
        if name not in ("event", "step", "time")
    }
    read = {(tag, s.step): s.value for tag in board.Tags()["scalars"] for s in board.Scalars(tag)}
    assert set(read) == set(written) and len(read) > 20
    assert all(read[key] == pytest.approx(value, rel=1e-6) for key, value in written.items())


def test_evaluate_finds_what_training_found(run: tuple[Path, Any], vit: Callable[..., Any]) -> None:
    found = result(run)
    folder = run[0] / found["run_dir"]
    for checkpoint in (folder, run[0] / found["checkpoint"]):
        done = vit("evaluate", "--checkpoint", checkpoint, "--backend=cpu", "--json")
        assert done.code == 0, done
        again = json.loads(done.out.splitlines()[-1])
        assert {k: again[k] for k in ("accuracy", "correct", "total", "loss")} == {
            k: found[k] for k in ("accuracy", "correct", "total", "loss")
        }
        assert (again["steps"], again["backend"], again["bad_images"]) == (STEPS, "cpu", 0)
    # Another batch size has a ragged last batch: every image still counts once.
    again = json.loads(vit("evaluate", "--checkpoint", folder, "--eval_batch_size", 77, "--backend=cpu", "--json").out)
    assert (again["correct"], again["total"]) == (found["correct"], 360)
    assert again["loss"] == pytest.approx(found["loss"], rel=1e-5)
    plain = vit("evaluate", "--backend=cpu", "--checkpoint", folder / "checkpoints" / "best").out
    assert plain.startswith("accuracy ") and plain.count("\n") == 1 and " of 360), top-5 " in plain


def test_without_json_the_end_is_one_line_for_people(train: Callable[..., Any], quick: list[str]) -> None:
    done = train(*quick)
    assert done.code == 0 and done.out.count("\n") == 1
    assert done.out.startswith("accuracy ") and " after 3 steps, " in done.out
    assert done.out.rstrip().endswith(os.path.join("output", "digits", "checkpoints", "step-00000003"))


def test_the_version_and_the_verbs(vit: Callable[..., Any]) -> None:
    assert vit("--version").out.strip() == version("vitcore")
    (command,) = entry_points(group="console_scripts", name="vitcore")
    assert command.load() is cli.main, "the command beside python is the same"
    assert vit("--help").out == vit().out
    assert all(f"\n  {verb} " in vit("-h").out for verb in ("train", "evaluate", "backends", "lower"))


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vitcore.lower", "--backend", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()
