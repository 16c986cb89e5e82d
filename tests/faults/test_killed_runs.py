"""A crash at any moment of saving leaves a checkpoint that loads; a run that is killed again and again ends the same."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_job import command, end, start, wait_for
from rig import assert_same_bits, checkpoint_of, config, contents, records, resume, train

from vitcore import checkpoint
from vitcore.config import Config
from vitcore.errors import VitcoreError

# Where saving can be cut: every call that changes what is on the disk.
CALLS = ("mkdir", "save_file", "fsync", "rename", "rmtree", "write_text")


def number(path: Path) -> float:
    return checkpoint.load(path).tensors["x"][0].item()


def save(path: Path, value: float) -> None:
    checkpoint.save(path, {"x": torch.full((8,), value)}, {"c": 1}, {"step": value})


def tripping(patch: pytest.MonkeyPatch, at: int, trip: Any) -> list[str]:
    """Call `trip` in the place of the call number `at` that changes the disk; returns what was called."""
    called: list[str] = []

    def wrap(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            called.append(name)
            return trip() if len(called) - 1 == at else real(*args, **kwargs)

        return call

    for owner, name in ((Path, "mkdir"), (checkpoint, "save_file"), (os, "fsync"), (Path, "rename"),
                        (shutil, "rmtree"), (Path, "write_text")):  # fmt: skip
        patch.setattr(owner, name, wrap(name, getattr(owner, name)))
    return called


@pytest.mark.parametrize("replaces", [True, False], ids=["an old one", "nothing"])
def test_a_crash_at_any_call_of_saving_leaves_the_old_checkpoint_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    run_dir, crashed = tmp_path, 0
    for at in range(40):
        shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
        before, path = (run_dir / "checkpoints" / f"step-{n:08d}" for n in (1, 2))
        save(before, 1)
        if replaces:
            save(path, 2)
        child = os.fork()
        if child == 0:  # no code of pytest may run on from here
            try:
                with monkeypatch.context() as patch:
                    tripping(patch, at, lambda: os._exit(9))
                    save(path, 3)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            break
        crashed += 1
        assert code == 9
        newest = checkpoint.newest(run_dir)
        assert newest is not None and number(newest) in ((2, 3) if replaces else (1, 3)), at
        assert number(run_dir) == number(newest) and number(before) == 1
        if replaces:
            assert number(path) == number(newest)  # by its own name too
        save(path, 4)  # goes on where the crash was, and cleans up after it
        assert number(path) == number(run_dir) == 4
        assert {p.name for p in path.parent.iterdir()} == {before.name, path.name}, at
    assert crashed >= (11 if replaces else 9)


@pytest.mark.parametrize("replaces", [True, False], ids=["an old one", "nothing"])
def test_a_full_disk_at_any_call_of_saving_is_an_error_that_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    failed = 0
    for at in range(40):
        path = tmp_path / "checkpoints" / "step-00000002"
        shutil.rmtree(path.parent, ignore_errors=True)
        save(path.with_name("step-00000001"), 1)
        if replaces:
            save(path, 2)
        with monkeypatch.context() as patch:
            called = tripping(patch, at, full)
            try:
                save(path, 3)
            except VitcoreError as e:
                failed += 1
                assert str(e).startswith(f"checkpoint {path}: writing failed: No space left on device; free space")
            except OSError:
                assert called[at] == "rmtree"  # it is told to ignore errors; ours does not listen
                continue
        if len(called) <= at:
            break
        assert number(path.with_name("step-00000001")) == 1
        newest = number(tmp_path)
        assert newest in ((2, 3) if replaces else (1, 3))
        if replaces:
            assert number(path) == newest and path.is_dir()  # itself, not only what stands in for it
        assert not [*path.parent.glob(".*new*")]
    assert failed >= (8 if replaces else 7)


def test_a_file_system_that_refuses_the_tensors_is_an_error_that_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "step-00000001"
    save(path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(
            VitcoreError, match=r"writing failed: .*too large.*; free space or choose another --output_dir"
        ):
            save(path.with_name("step-00000002"), 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert number(tmp_path) == 1 and [p.name for p in path.parent.iterdir()] == [path.name]


def test_training_on_a_disk_that_fills_up_stops_with_the_last_checkpoint_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tmp_path, num_steps=6, train_batch_size=8, eval_every=0, save_every=2)
    whole = replace(settings, output_dir=str(tmp_path / "whole"))
    train(whole)
    synced = []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(VitcoreError, match="step-00000004: writing failed: No space left on device"):
            train(settings)
    assert [p.name for p in checkpoint_of(settings, 2).parent.iterdir()] == ["step-00000002"]
    resume(settings)
    assert_same_bits(contents(checkpoint_of(settings, 6))[0], contents(checkpoint_of(whole, 6))[0])
    assert records(settings, "train") == records(whole, "train")


# ---- kill -9 ----


def killed_again_and_again(settings: Config, rounds: int, seed: int) -> None:
    """Kill a training at random moments, resuming each time; what is on the disk always loads."""
    draw, run_dir, steps = random.Random(seed), Path(settings.output_dir) / settings.name, [0]
    stderr = Path(settings.output_dir).with_name("stderr.txt")
    for _ in range(rounds):
        argv = command(settings) + (["--resume", str(run_dir)] if steps[-1] else [])
        process = start(argv, stderr)
        try:
            # Not before it has saved something of its own, and not so late that it could be done.
            wait_for(lambda: _newest(run_dir) > steps[-1], process)
            time.sleep(draw.uniform(0, 0.15))
        finally:
            process.kill()
        assert end(process) == -signal.SIGKILL
        loaded = checkpoint.load(run_dir)
        steps.append(loaded.facts["step"])
        assert steps[-1] == _newest(run_dir) and loaded.values["c"] == steps[-1] * settings.train_batch_size
    assert steps == sorted({*steps}) and steps[-1] < settings.num_steps


def _newest(run_dir: Path) -> int:
    found = checkpoint.newest(run_dir)
    return int(found.name.lstrip(".")[5:13]) if found else 0


def prove(folder: Path, rounds: int, steps: int, seed: int) -> None:
    settings = config(folder / "killed", train_batch_size=8, num_steps=steps, eval_every=0, save_every=1, log_every=7)
    killed_again_and_again(settings, rounds, seed)
    resume(settings)
    whole = replace(settings, output_dir=str(folder / "whole"), save_every=0)
    train(whole)
    assert_same_bits(contents(checkpoint_of(settings, steps))[0], contents(checkpoint_of(whole, steps))[0])
    assert contents(checkpoint_of(settings, steps))[1] == contents(checkpoint_of(whole, steps))[1]
    assert records(settings, "eval") == records(whole, "eval")
    left = {p.name for p in checkpoint_of(settings, steps).parent.iterdir()}
    assert left == {f"step-{steps - 1:08d}", f"step-{steps:08d}", "best"}


def test_a_run_killed_three_times_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    prove(tmp_path, rounds=3, steps=60, seed=11)


@pytest.mark.slow
def test_a_run_killed_twenty_five_times_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    prove(tmp_path, rounds=25, steps=700, seed=12)
