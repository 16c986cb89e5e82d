"""The peers' loops: each trains, all train the same, and what the table says follows from the times."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers import PEERS, loops, rounds, table
from benchmarks.peers.__main__ import variants
from benchmarks.peers.hf_trainer import Turnstile
from benchmarks.workload import Workload
from vitcore.errors import VitcoreError

ROOT = Path(__file__).parents[2]


def peers(folder: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """The command on a model of a moment, and what it printed."""
    file = folder / "peers.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "--backend", "cpu", "--model", "ViT-digits", "--img_size", "8", "--batch", "4",
         "--classes", "10", "--gemm", "64", "--threads", "1", "--warmup", "1", "--json", str(file), *flags],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text()), done.stdout


def test_every_loop_trains_the_same_model(tmp_path: Path) -> None:
    said, shown = peers(tmp_path, "--precision", "fp32", "--pairs", "1")
    rows = {row["name"]: row for row in said["loops"]}
    assert [*rows] == ["vitcore", *PEERS]
    first, last = rows["hand"]["first_loss"], rows["hand"]["last_loss"]
    assert abs(first - math.log(10)) > 1e-3  # the head is not zero, so the body matters from the first step on
    for name, row in rows.items():
        assert name in shown
        assert row["first_loss"] == pytest.approx(first, rel=1e-5), name
        # The same again after two updates: the same optimizer, at the same rate.
        assert row["last_loss"] == pytest.approx(last, rel=1e-4), name
        assert row["times"] and row["peak_bytes"] > row["held_bytes"] > 0
    assert last != first
    assert {(r["of"], r["to"]) for r in said["ratios"]} == {("vitcore", name) for name in PEERS}


def test_in_bf16_losses_agree_to_its_rounding(tmp_path: Path) -> None:
    said, _ = peers(tmp_path, "--precision", "bf16", "--pairs", "2", "--peers", "hand,tuned", "--pixels", "bytes",
                    "--vitcore", "a=", "--vitcore", "b=--disable_kernel all")  # fmt: skip
    losses = {row["name"]: row["first_loss"] for row in said["loops"]}
    assert [*losses] == ["a", "b", "hand", "tuned"]
    last = {row["name"]: row["last_loss"] for row in said["loops"]}
    assert all(loss == pytest.approx(last["hand"], rel=2e-2) for loss in last.values()), last
    assert all(loss == pytest.approx(losses["hand"], rel=1e-2) for loss in losses.values()), losses
    assert {(r["of"], r["to"]) for r in said["ratios"]} == {
        ("a", "hand"), ("a", "tuned"), ("b", "hand"), ("b", "tuned"), ("b", "a"),
    }  # fmt: skip
    assert said["rounds"] == 2 and all(len(row["times"]) == 2 for row in said["loops"])


def test_a_peer_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loops.importlib.util.find_spec
    monkeypatch.setattr(loops.importlib.util, "find_spec", lambda name: None if name == "lightning" else found(name))
    with pytest.raises(VitcoreError, match=r"fabric needs lightning.*-m pip install lightning.*--peers hand,timm,hf"):
        loops.builders([*PEERS], [False])
    assert [*loops.builders(["hand", "timm"], [False, True])] == ["hand", "hand-compiled", "timm", "timm-compiled"]
    with pytest.raises(VitcoreError, match="'jax' is no peer; choose from hand, timm"):
        loops.builders(["jax"], [False])


class Fake:
    """A loop that takes as long as it says, on a clock that stands still otherwise."""

    def __init__(self, name: str, now: list[float], seconds: float, order: list[str]) -> None:
        self.name, self.now, self.seconds, self.order = name, now, seconds, order

    def step(self) -> None:
        self.order.append(self.name)
        self.now[0] += self.seconds


def test_rounds_have_each_loop_in_every_place_and_end_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    now, order = [0.0], list[str]()
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def run(**limits: Any) -> tuple[int, dict[str, rounds.Measured]]:
        order.clear()
        loops: Any = [Fake("a", now, 1, order), Fake("b", now, 2, order)]
        found = {loop.name: rounds.Measured(loop.name) for loop in loops}
        product: Any = Fake("p", now, 4, order)
        return rounds.run_rounds(loops, found, product, lambda: None, **limits), found

    done, found = run(rounds=3, inner=1, seconds=float("inf"))
    assert done == 3 and [order[i : i + 3] for i in range(0, 9, 3)] == [list("apb"), list("bap"), list("pba")]
    assert {name: m.times for name, m in found.items()} == {"a": [1] * 3, "b": [2] * 3, rounds.GEMM: [4] * 3}
    # Of several steps between two waits a step's share; a round of 14 seconds that would not end in time is not begun.
    done, found = run(rounds=9, inner=2, seconds=30)
    assert done == 2 and found["b"].times == [2, 2]


def test_a_loop_that_cannot_train_here_is_named() -> None:
    def build() -> Any:
        raise RuntimeError("no such accelerator")

    with pytest.raises(VitcoreError, match="fabric cannot train here: RuntimeError: no such accelerator; leave it out"):
        rounds.build_all({"fabric": build}, torch.device("cpu"), lambda: None, 1)


def test_a_ratio_is_of_one_round_and_the_verdict_of_its_interval() -> None:
    """The machine slows down threefold on the way: the ratios do not."""
    slow = [1.0, 1.0, 3.0, 3.0, 2.0, 2.5] * 5
    found = {
        "ours": rounds.Measured("ours", slow),
        "twice": rounds.Measured("twice", [2 * t for t in slow]),
        "half": rounds.Measured("half", [t / 2 for t in slow]),
        "tuned-compiled": rounds.Measured("tuned-compiled", [t / 4 for t in slow]),
        rounds.GEMM: rounds.Measured(rounds.GEMM, [t / 4 for t in slow]),
    }
    job = Workload("ViT-digits", 8, 4, classes=10)
    said = table.facts(job, found, ["ours"], product=1000)
    assert [(r["median"], r["low"], r["high"]) for r in said["ratios"]] == [
        (2, 2, 2),
        (0.5, 0.5, 0.5),
        (0.25, 0.25, 0.25),
    ]
    assert [(v["to"], v["verdict"]) for v in said["verdicts"]] == [("half", "slower"), ("tuned-compiled", "slower")]
    assert said["loops"][0]["mfu"] == pytest.approx(job.operations / 4000)
    shown = table.show("title", said)
    assert "ours: 0.500 [0.500 .. 0.500] times as fast as the best peer, half: slower" in shown
    assert "ours: 0.250 [0.250 .. 0.250] times as fast as the bound, tuned-compiled: slower" in shown


@pytest.mark.parametrize("given", ["default", "=--x", "hand=--threads 1"])
def test_a_variant_has_a_name_of_its_own(given: str) -> None:
    with pytest.raises(VitcoreError, match="is no variant; write NAME=FLAGS"):
        variants([given])
    assert variants(["a=", "b=--disable_kernel x y"]) == {"a": [], "b": ["--disable_kernel", "x", "y"]}


def test_what_a_worker_at_the_turnstile_raises_is_raised_where_the_step_is_asked_for() -> None:
    from contextlib import nullcontext
    from threading import Thread

    turnstile, steps = Turnstile(), []

    def work() -> None:
        try:
            turnstile.enter()
            for number in range(2):
                steps.append(number)
                turnstile.arrive()
            raise KeyError("the third step")
        except BaseException as e:
            turnstile.fall(e)

    thread = Thread(target=work)
    thread.start()
    turnstile.step(nullcontext())
    assert steps == [0]
    turnstile.step(nullcontext())
    assert steps == [0, 1]
    with pytest.raises(VitcoreError, match="KeyError: 'the third step'"):
        turnstile.step(nullcontext())
    thread.join()


def test_a_loops_bytes_are_those_of_its_tensors() -> None:
    from contextlib import AbstractContextManager

    from benchmarks import memory

    cpu = torch.device("cpu")
    before = memory.held(cpu)
    kept = torch.zeros(1000)
    assert memory.held(cpu) - before == 4000

    def step(context: AbstractContextManager[Any]) -> None:
        with context:
            part = torch.zeros(5000)
            del part
            torch.zeros(2000), torch.zeros(3000)

    assert memory.added(cpu, step, lambda: None) == 20000
    assert kept.sum() == 0
