"""Ctrl-C and SIGTERM end a run in good order: the step ends, a checkpoint is written, the exit code says which signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from fault_job import command, end, start, wait_for
from rig import assert_same_bits, checkpoint_of, config, contents, records, resume, train

from vitcore.config import Config


def long(folder: Path) -> Config:
    """A run that would take a while, and saves nothing before its end."""
    return config(folder, num_steps=5000, train_batch_size=8, eval_every=0, log_every=5)


def has_logged(settings: Config, step: int = 5) -> bool:
    file = Path(settings.output_dir) / settings.name / "metrics.jsonl"
    return file.is_file() and f'"step": {step},' in file.read_text()


def assert_stopped(settings: Config, stderr: str, name: str) -> int:
    """It said at which step it stopped, that step is saved, and going on is as if it had never stopped."""
    assert "Traceback" not in stderr and "Error" not in stderr, stderr
    found = re.search(r"^stopped after step (\d+); go on with --resume (\S+)$", stderr, re.M)
    assert found is not None and f"vitcore: stopped by {name} after saving" in stderr, stderr
    step, run_dir = int(found[1]), Path(settings.output_dir) / settings.name
    assert found[2] == str(run_dir)
    assert [p.name for p in (run_dir / "checkpoints").iterdir()] == [f"step-{step:08d}"]
    resume(settings, stop_at=step + 3)
    whole = replace(settings, output_dir=settings.output_dir + "-whole")
    train(whole, stop_at=step + 3)
    ours, theirs = (contents(checkpoint_of(c, step + 3)) for c in (settings, whole))
    assert_same_bits(ours[0], theirs[0])
    assert ours[1] == theirs[1] and records(settings, "train") == records(whole, "train")
    return step


def test_ctrl_c_at_the_command_saves_and_leaves_with_130(tmp_path: Path) -> None:
    settings = long(tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "vitcore", *command(settings), "--json"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "VITCORE_DEBUG": "0"})  # fmt: skip
    try:
        wait_for(lambda: has_logged(settings) or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    step = assert_stopped(settings, err, "SIGINT")
    said = json.loads(out)
    assert (said["steps"], said["interrupted_by"], said["accuracy"]) == (step, 2, None)
    assert said["checkpoint"] == str(checkpoint_of(settings, step))


def test_sigterm_saves_and_leaves_with_143(tmp_path: Path) -> None:
    settings, stderr = long(tmp_path), tmp_path / "stderr.txt"
    process = start(command(settings), stderr)
    wait_for(lambda: has_logged(settings), process)
    os.kill(process.pid or 0, signal.SIGTERM)
    assert end(process) == 143
    assert_stopped(settings, stderr.read_text(), "SIGTERM")


def test_a_second_ctrl_c_ends_at_once_without_a_checkpoint(tmp_path: Path) -> None:
    settings, stderr = long(tmp_path), tmp_path / "stderr.txt"
    process = start(command(settings), stderr, sleep_at=5)
    wait_for((tmp_path / "run" / "sleeping").exists, process)
    os.kill(process.pid or 0, signal.SIGINT)
    time.sleep(0.3)
    assert process.is_alive()  # the first one waits for the step to end, and this one sleeps
    started = time.monotonic()
    os.kill(process.pid or 0, signal.SIGINT)
    assert end(process, 10) == 130
    assert time.monotonic() - started < 5
    said = stderr.read_text()
    assert said.endswith("vitcore: interrupted\n") and "Traceback" not in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_signal_before_training_has_begun_ends_without_a_traceback(tmp_path: Path) -> None:
    """While it opens its data, nothing is there to be saved yet."""
    settings, stderr = long(tmp_path), tmp_path / "stderr.txt"
    process = start(command(settings), stderr)
    wait_for(lambda: (tmp_path / "run").is_dir(), process)
    os.kill(process.pid or 0, signal.SIGINT)
    assert end(process, 20) == 130
    assert "Traceback" not in stderr.read_text()
