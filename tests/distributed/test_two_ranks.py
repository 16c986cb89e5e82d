"""Two ranks over gloo do what one rank does with the joined batch, with one reduction a step."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_job import CASES, STEPS, case
from rig import LAUNCHER, checkpoint_of, config, contents, records, relative_error, train
from safetensors.torch import load_file

from vitcore.backend import Backend, World
from vitcore.errors import VitcoreError
from vitcore.plan import make_plan
from vitcore.runtime.distributed import every_rank, open_group, world_from_env

JOB = Path(__file__).with_name("rank_job.py")
TIMEOUT = 180


def free_ports(count: int) -> int:
    """The first of some neighbouring ports that nobody listens on."""
    for _ in range(50):
        with socket.socket() as s:
            s.bind(("localhost", 0))
            first: int = s.getsockname()[1]
        try:
            for port in range(first, first + count):
                with socket.socket() as s:
                    s.bind(("localhost", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def both(command: Sequence[str], envs: Sequence[dict[str, str]]) -> list[subprocess.CompletedProcess[str]]:
    """Start two ranks, wait for both; neither outlives this call."""
    base = {k: v for k, v in os.environ.items() if k not in LAUNCHER}
    started = [
        subprocess.Popen([sys.executable, *command], env={**base, **env}, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE) for env in envs
    ]  # fmt: skip
    try:
        said = [p.communicate(timeout=TIMEOUT) for p in started]
    finally:
        for p in started:
            p.kill()
    return [
        subprocess.CompletedProcess(p.args, p.returncode, out, err)
        for p, (out, err) in zip(started, said, strict=True)
    ]  # fmt: skip


class Job:
    """What the two ranks of rank_job.py found, by rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: list[dict[str, Any]] = [json.loads((folder / f"{r}.json").read_text()) for r in (0, 1)]
        self.tensors = [load_file(folder / f"{r}.safetensors") for r in (0, 1)]

    def params(self, rank: int, name: str) -> list[torch.Tensor]:
        count = sum(key.startswith(f"{name}/") for key in self.tensors[rank])
        return [self.tensors[rank][f"{name}/{i}"] for i in range(count)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder, port = tmp_path_factory.mktemp("ranks"), free_ports(4)
    envs = [{"RANK": str(r), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} for r in (0, 1)]
    for rank, done in enumerate(both([str(JOB), str(folder), str(port + 1)], envs)):
        assert done.returncode == 0, f"rank {rank}: {done.stderr[-3000:]}"
    return Job(folder)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_are_one_rank_with_the_joined_batch(job: Job, name: str) -> None:
    alone, params = case(name, World())
    assert relative_error(job.params(0, name), params) < 1e-6
    two = job.found[0][name]
    for what in ("loss", "grad_norm"):
        mean, want = (f["train"][what] / f["train"][f"{what}_n"] for f in (two, alone))
        assert mean == pytest.approx(want, rel=1e-5)
    assert two["train"]["steps"] == STEPS and two["train"]["bad_steps"] == 0
    assert two["eval"]["eval_total"] == alone["eval"]["eval_total"] == 360
    assert two["eval"]["eval_correct"] == alone["eval"]["eval_correct"]
    assert two["eval"]["eval_loss"] == pytest.approx(alone["eval"]["eval_loss"], rel=1e-5)


@pytest.mark.parametrize("name", [*CASES, "poisoned"])
def test_both_ranks_hold_the_same_bits_and_read_the_same_log(job: Job, name: str) -> None:
    pairs = [*zip(job.params(0, name), job.params(1, name), strict=True)]
    assert len(pairs) > 30 and all(torch.equal(a, b) for a, b in pairs)
    for log in ("train", "eval"):
        assert job.found[0][name][log] == job.found[1][name][log]


@pytest.mark.parametrize("name", CASES)
def test_a_step_reduces_once_whatever_its_accumulation_and_nothing_but_whole_lines(job: Job, name: str) -> None:
    for rank in (0, 1):
        found = job.found[rank][name]
        assert found["stats"]["reductions"] == STEPS
        assert found["stats"]["bytes_reduced"] == STEPS * 4 * found["in_lines"]
        assert found["numbers"] <= found["in_lines"] < 1.001 * found["numbers"]
        slots = len(found["train"])  # a log reduces every accumulator, in one more
        assert found["all_stats"]["reductions"] == STEPS + 2
        assert found["all_stats"]["bytes_reduced"] == STEPS * 4 * found["in_lines"] + 2 * 4 * slots
        assert found["all_stats"]["host_reads"] == 2


def test_one_rank_reduces_nothing() -> None:
    assert case("plain", World())[0]["all_stats"]["reductions"] == 0


def test_every_evaluation_image_is_counted_once_over_the_ranks(job: Job) -> None:
    seen = [job.found[rank]["plain"]["images"] for rank in (0, 1)]
    assert sorted(seen[0] + seen[1]) == list(range(360))
    assert seen[0] and seen[1] and {*seen[0]}.isdisjoint(seen[1])


def test_what_is_not_finite_on_one_rank_is_skipped_and_counted_once_on_all(job: Job) -> None:
    report = job.found[0]["poisoned"]["train"]
    assert (report["steps"], report["bad_steps"], report["first_bad_step"]) == (STEPS, 1, 3)
    assert all(bool(p.isfinite().all()) for p in job.params(1, "poisoned"))


def test_a_run_of_two_ranks_resumes_to_the_same_bits_and_logs(job: Job) -> None:
    whole = config(job.folder / "whole", num_steps=6, train_batch_size=16)
    resumed = config(job.folder / "resumed", num_steps=6, train_batch_size=16)
    one, other = (contents(checkpoint_of(c, 6)) for c in (whole, resumed))
    assert one[1] == other[1] and one[1]["c"] == 6 * 32
    assert one[0].keys() == other[0].keys() and all(torch.equal(t, other[0][n]) for n, t in one[0].items())
    logs, again = records(whole, "train"), records(resumed, "train")
    assert {*again} == {5, 6} and again == {step: logs[step] for step in again}
    assert records(whole, "eval")[6] == records(resumed, "eval")[6]


def test_a_signal_to_one_rank_stops_both_after_the_next_log(job: Job) -> None:
    for rank in (0, 1):
        result = job.found[rank]["runs"]["stopped"]
        assert (result["steps"], result["interrupted_by"]) == (2, 15), rank
    stopped = config(job.folder / "stopped")
    assert contents(checkpoint_of(stopped, 2))[2]["step"] == 2


def test_the_command_ends_on_both_ranks_of_mpirun_and_rank_0_alone_writes(tmp_path: Path) -> None:
    port = str(free_ports(1))
    envs = [
        {"OMPI_COMM_WORLD_RANK": str(r), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
         "MASTER_PORT": port, "VITCORE_DEBUG": "0"} for r in (0, 1)
    ]  # fmt: skip
    args = "--dataset digits-tune --backend cpu --optimizer sgdm --learning-rate 0.05 --num-steps 6 --warmup-steps 0 "
    args += "--train-batch-size 16 --eval-batch-size 50 --eval-every 3 --log-every 2 --threads 1 --name two --json"
    command = ["-m", "vitcore", "train", *args.split(), "--output-dir", str(tmp_path)]
    first, second = both(command, envs)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr[-2000:] + second.stderr[-2000:]
    said = json.loads(first.stdout.splitlines()[-1])  # torch 2.9 has gloo print a line before it
    ours = [line for line in second.stdout.splitlines() if not line.startswith("[Gloo]")]
    assert ours == [] and second.stderr == ""
    assert said["total"] == 360 and said["steps"] == 6
    run_dir = tmp_path / "two"
    assert said["checkpoint"] == str(run_dir / "checkpoints" / "step-00000006")
    assert {p.name for p in tmp_path.iterdir()} == {"two"}
    assert {p.name for p in (run_dir / "checkpoints").iterdir()} == {"step-00000003", "step-00000006", "best"}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "train"] == [2, 3, 4, 6]
    assert len([*(run_dir / "tensorboard").iterdir()]) == 1
    # One rank with the joined batch ends in nearly the same numbers.
    facts = contents(run_dir / "checkpoints" / "step-00000006")[2]
    assert facts["images_per_step"] == 32
    settings = {**facts["config"], "augment_scale": tuple(facts["config"]["augment_scale"]), "train_batch_size": 32}
    alone = train(config(tmp_path, **{**settings, "name": "one", "output_dir": str(tmp_path)}))
    ends = [contents(Path(c))[0] for c in (said["checkpoint"], alone.checkpoint)]
    names = [n for n in ends[0] if n.startswith(("params/", "opt/"))]
    assert relative_error([ends[0][n] for n in names], [ends[1][n] for n in names]) < 1e-6


# ---- who we are ----


def test_the_world_is_what_the_launcher_says() -> None:
    assert world_from_env({}) == World(1, 0)
    assert world_from_env({"RANK": "1", "WORLD_SIZE": "4"}) == World(4, 1)
    assert world_from_env({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "8"}) == World(8, 3)
    assert world_from_env({"RANK": "0", "WORLD_SIZE": "1"}) == World()


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({"RANK": "0"}, "^RANK is set but WORLD_SIZE is not; set both, or start through torchrun or mpirun$"),
        ({"WORLD_SIZE": "2"}, "^WORLD_SIZE is set but RANK is not"),
        ({"OMPI_COMM_WORLD_RANK": "0"}, "^OMPI_COMM_WORLD_RANK is set but OMPI_COMM_WORLD_SIZE is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "^RANK=2 of WORLD_SIZE=2 is no rank; ranks go from 0 to size - 1$"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "^RANK=-1 of WORLD_SIZE=2 is no rank"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "^RANK=0 of WORLD_SIZE=0 is no rank"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "^RANK=one of WORLD_SIZE=2 is no rank"),
        ({"RANK": "\u00b2", "WORLD_SIZE": "4"}, "is no rank"),
    ],
)
def test_an_environment_that_describes_no_world_is_refused(
    env: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(VitcoreError, match=why):
        world_from_env(env)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(VitcoreError, match=why):
        make_plan(config(tmp_path))


def test_ranks_that_cannot_meet_are_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    gloo, none = Backend(name="there", device="cpu", collective="gloo"), Backend(name="alone", device="cpu")
    with pytest.raises(VitcoreError, match="backend 'alone' has no collective, so it cannot run 2 ranks"):
        open_group(none, World(2, 0))
    with pytest.raises(VitcoreError, match="WORLD_SIZE is above 1 but MASTER_ADDR is not set; start through torchrun"):
        open_group(gloo, World(2, 0))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(VitcoreError, match="the ranks are on several machines; set it to rank 0's address"):
        open_group(gloo, World(2, 0))
    open_group(none, World())  # one rank needs nothing
    with pytest.raises(ValueError, match="process group has not been initialized"):
        every_rank(1, torch.device("cpu"))
