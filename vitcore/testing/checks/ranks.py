"""C10: two ranks, each in its own process, against one rank with the joined batch."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from vitcore.backend import World
from vitcore.runtime.distributed import close_group, open_group, world_from_env
from vitcore.testing.checks import Failure, NotApplicable
from vitcore.testing.checks.numbers import ROUNDING, apart
from vitcore.testing.problem import Subject, host_leaves, reference
from vitcore.testing.process import REFUSED
from vitcore.testing.recording import FACTOR

STEPS = 3
LONGEST = 300.0
_STOPPED = -signal.SIGKILL
CASES = {"sgdm": (1, 0.0), "adamw": (2, 0.1)}


def two_ranks(subject: Subject) -> str:
    """Parameters, the evaluation's counts, and the ranks against each other."""
    if subject.backend.collective is None:
        raise NotApplicable("the backend has no collective: one process only, and two are refused (C11)")
    with tempfile.TemporaryDirectory() as folder:
        _start(subject, Path(folder))
        for optimizer in CASES:
            _compare(subject, optimizer, [_read(Path(folder), optimizer, rank) for rank in (0, 1)])
    return f"{', '.join(CASES)}, {STEPS} steps: equal to one rank to rounding, and to each other bit by bit"


def _start(subject: Subject, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    argv = subject.process("--rank-of", str(folder), str(subject.seed))
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    errors = [(folder / f"rank-{r}").open("w+") for r in (0, 1)]
    ranks = [
        subprocess.Popen(argv, env={**os.environ, **where, "RANK": str(r), "LOCAL_RANK": str(r)}, text=True,
                         stdout=subprocess.DEVNULL, stderr=errors[r])
        for r in (0, 1)
    ]  # fmt: skip
    ended = [rank.returncode for rank in _ended(ranks)]
    for number, code in enumerate(ended):
        errors[number].seek(0)
        said = errors[number].read()
        errors[number].close()
        reason = (said.strip().splitlines() or ["no reason given"])[-1]
        if code == REFUSED:
            raise NotApplicable(f"two ranks cannot run here: {reason}")
        if code and code != _STOPPED:
            raise Failure(f"rank {number} of 2 failed: {reason}")
    if any(ended):
        raise Failure(f"the ranks did not end within {LONGEST:.0f} s")


def _ended(ranks: Sequence[subprocess.Popen[str]]) -> Sequence[subprocess.Popen[str]]:
    """The ranks when they have ended. One that fails leaves the other waiting for it, which is then stopped."""
    until = time.monotonic() + LONGEST
    while any(r.poll() is None for r in ranks) and not any(r.poll() for r in ranks) and time.monotonic() < until:
        time.sleep(0.1)
    time.sleep(0.5 if any(r.poll() is None for r in ranks) else 0)  # where both fail, both should have said why
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
        rank.wait()
    return ranks


def run_rank(subject: Subject, folder: Path) -> None:
    """What one rank does: train, evaluate, and write what it has."""
    world = world_from_env()
    open_group(subject.backend, world)
    try:
        for optimizer in CASES:
            params, report = _train(subject, optimizer, world)
            save_file(params, folder / f"{optimizer}-{world.rank}.safetensors")
            (folder / f"{optimizer}-{world.rank}.json").write_text(json.dumps(report))
    finally:
        close_group()


def _train(subject: Subject, optimizer: str, world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    accumulation, dropout = CASES[optimizer]
    exe = subject.open(subject.spec(optimizer, accumulation), world=world, dropout=dropout)
    try:
        state = subject.train(exe, STEPS)
        assert exe.rt.feed is not None
        reduced = exe.stats().reductions
        state, report = exe.log(exe.eval(state, exe.rt.feed.eval_steps))
        params = {n: t.contiguous() for n, t in host_leaves(state[0], exe.rt.names).items()}
        return params, {**report, "reductions": reduced}
    finally:
        exe.close()


def _read(folder: Path, optimizer: str, rank: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    report = json.loads((folder / f"{optimizer}-{rank}.json").read_text())
    return load_file(folder / f"{optimizer}-{rank}.safetensors"), report


def _compare(subject: Subject, optimizer: str, ranks: list[tuple[dict[str, Tensor], dict[str, Any]]]) -> None:
    (zero, report), (one, _) = ranks
    for name, value in zero.items():
        if not bool((value == one[name]).all()):
            raise Failure(f"{optimizer}: parameter {name} of rank 1 is not rank 0's after {STEPS} steps; the ranks drift, so "
                          "grads.all_reduce does not give both the same")  # fmt: skip
    alone, expected = _train(subject, optimizer, World())
    usual, _ = _train(reference(subject), optimizer, World())
    for name, value in alone.items():
        distance = apart(zero[name], value)
        bound = FACTOR * max(apart(usual[name], value), ROUNDING)
        if not distance <= bound:
            raise Failure(f"{optimizer}: parameter {name} of two ranks is {distance:.2g} (relative) from that of one rank with "
                          f"the joined batch, where {bound:.2g} is rounding; look at grads.all_reduce")  # fmt: skip
    for name in ("eval_total", "eval_correct"):
        if report[name] != expected[name]:
            raise Failure(
                f"{optimizer}: metrics.all_reduce: {name} of two ranks is {report[name]:g}, of one {expected[name]:g}"
            )
