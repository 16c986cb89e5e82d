"""A run that is stopped by a signal, killed, or cannot write: nothing is lost, and it goes on to the same bits."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rig import assert_same_bits, checkpoint_of, config, contents, resume, train

from vitcore import checkpoint
from vitcore.errors import VitcoreError

COMMAND = (
    "-m vitcore.train --dataset digits-tune --threads 1 --num_steps 400 --train_batch_size 64 --eval_every 0 --log_every 5 "
    "--name run"
).split()


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, *COMMAND, "--output_dir", str(folder), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until the run has logged: then it is well inside its loop."""
    metrics = folder / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size):
        assert process.poll() is None and time.monotonic() < until, process.stderr and process.stderr.read()
        time.sleep(0.02)


def tensors_of(folder: Path) -> Any:
    return contents(folder / "run" / "checkpoints" / "step-00000400")[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder).wait() == 0
    return folder


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_leaves_and_the_run_goes_on_to_the_same_bits(
    signum: signal.Signals, whole: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "--json")
    wait_for(tmp_path, process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err and f"stopped by {signum.name} after saving" in err
    result = json.loads(out.splitlines()[-1])
    assert result["interrupted_by"] == signum and 0 < result["steps"] < 400 and result["accuracy"] is None
    assert checkpoint.load(Path(result["checkpoint"])).facts["step"] == result["steps"]
    assert start(tmp_path, "--resume", str(tmp_path / "run")).wait() == 0
    assert_same_bits(tensors_of(whole), tensors_of(tmp_path))


def kill_rounds(rounds: int, whole: Path, folder: Path, seed: int) -> None:
    """Kill a run that saves all the time at random moments; every time the newest checkpoint must load."""
    draw = random.Random(seed)
    resume_from: list[str] = []
    for _ in range(rounds):
        process = start(folder, "--save_every", "3", *resume_from)
        if not resume_from:
            wait_for(folder, process)
        time.sleep(draw.uniform(0.2, 4.0))
        process.kill()
        process.communicate()
        newest = checkpoint.newest(folder / "run")
        if newest is not None:
            assert checkpoint.load(newest).facts["step"] > 0
            resume_from = ["--resume", str(folder / "run")]
    assert start(folder, "--save_every", "3", *resume_from).wait() == 0
    left = [p.name for p in (folder / "run" / "checkpoints").iterdir() if p.name.startswith(".")]
    assert not left, "what a killed process left half written is removed"
    have, want = tensors_of(folder), tensors_of(whole)
    # Saving reads the metrics first, so only the accumulators since the last save differ from a run that saves less.
    for name in want:
        if not name.startswith("metrics/"):
            assert_same_bits(want[name], have[name])


def test_a_run_killed_at_random_moments_always_has_a_whole_checkpoint(whole: Path, tmp_path: Path) -> None:
    kill_rounds(3, whole, tmp_path, seed=1)


@pytest.mark.slow
def test_a_run_killed_twenty_five_times_always_has_a_whole_checkpoint(whole: Path, tmp_path: Path) -> None:
    kill_rounds(25, whole, tmp_path, seed=2)


@pytest.mark.parametrize("broken", ["save_file", "_sync"])
def test_a_full_disk_is_said_and_leaves_the_older_checkpoint_whole(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path)
    train(settings, stop_at=7)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, broken, full)
        with pytest.raises(VitcoreError, match=r"No space left on device; free space or choose another --output_dir"):
            resume(settings, stop_at=9)
    folder = checkpoint_of(settings, 7).parent
    assert [p.name for p in folder.iterdir() if not p.name.startswith("best")] == ["step-00000007"], "nothing half written"
    assert resume(settings, stop_at=9).steps == 9


def test_nothing_that_is_loaded_can_execute_code() -> None:
    import vitcore

    for file in Path(vitcore.__file__).parent.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "pickle" not in text and "torch.load" not in text, file
