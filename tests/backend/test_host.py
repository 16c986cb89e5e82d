"""The processor as a host: threads by what this process may use, and memory that malloc keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import vitcore_cpu
from vitcore_cpu import host

from vitcore import control_groups
from vitcore.data.loading import cores
from vitcore.runtime.opening import place_threads

CPU = vitcore_cpu.CPU


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """torch's number of threads, as it was before."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A container of 16 cores whose control group allows what is written, `QUOTA PERIOD` or `max PERIOD`."""
    for name in (*host._THREADS, *control_groups.LOCAL_RANKS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    (tmp_path / "cgroup").write_text("0::/\n")
    real = cores.usable_cores
    monkeypatch.setattr(host, "usable_cores", lambda said: real(said, tmp_path / "cgroup", tmp_path))
    return lambda text: (tmp_path / "cpu.max").write_text(text) and None


def test_a_quota_lowers_torchs_own_choice_and_is_said(quota: Callable[[str], None]) -> None:
    quota("350000 100000\n")
    torch.set_num_threads(8)
    assert place_threads(CPU, 0) == (
        "threads: 3, for as many cores may this process use; torch would take 8; --threads sets another number"
    )
    assert torch.get_num_threads() == 3
    # What is measured for the machine places them first, and the run then says it.
    assert place_threads(CPU, 0).startswith("threads: 3, ") and "would take 8;" in place_threads(CPU, 0)
    torch.set_num_threads(2)
    assert place_threads(CPU, 0) == "" and torch.get_num_threads() == 2


def test_ranks_of_one_machine_share_the_quota(quota: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    quota("800000 100000\n")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    torch.set_num_threads(8)
    assert place_threads(CPU, 0).startswith("threads: 2, ") and torch.get_num_threads() == 2


@pytest.mark.parametrize("text", ["max 100000\n", "1200000 100000\n"])
def test_where_there_is_room_torchs_own_choice_stays_and_nothing_is_said(
    text: str, quota: Callable[[str], None]
) -> None:
    quota(text)
    torch.set_num_threads(8)
    assert place_threads(CPU, 0) == "" and torch.get_num_threads() == 8


def test_what_the_person_says_holds(quota: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    quota("200000 100000\n")
    assert place_threads(CPU, 5) == "" and torch.get_num_threads() == 5, "--threads"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert place_threads(CPU, 0) == "" and torch.get_num_threads() == 5, "the environment"


def test_a_device_that_does_not_compute_on_the_host_is_left_alone(quota: Callable[[str], None]) -> None:
    quota("100000 100000\n")
    torch.set_num_threads(2)
    assert place_threads(replace(CPU, threads=None), 0) == "" and torch.get_num_threads() == 2


RUN = """
import sys
from vitcore_cpu import host
host.usable_cores = lambda environment: 1
import torch
torch.set_num_threads(2)
from vitcore.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.parametrize(("asked", "said"), [(0, True), (2, False)])
def test_a_run_says_it_in_one_line_before_its_first_step(asked: int, said: bool, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in host._THREADS}
    flags = "--backend cpu --num_steps 1 --eval_every 0 --threads".split()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *flags, str(asked)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    found = [i for i, line in enumerate(lines) if line.startswith("threads: 1, ")]
    assert len(found) == said
    assert not said or found[0] < next(i for i, line in enumerate(lines) if line.startswith("first step "))


# ---- memory ----

# Page faults of a step, the mean of three after two, and the peak of memory in KiB.
FAULTS = """
import json, resource, sys, tempfile
from vitcore_cpu import host
if sys.argv[1] == "plain":
    host.keep_memory = lambda: False
import vitcore
from vitcore.plan import make_plan
config = vitcore.recipe("digits").config(
    model_type="ViT-Ti_16", img_size=224, dataset="synthetic", train_batch_size=8, threads=1, backend="cpu", eval_batch_size=8,
    output_dir=tempfile.mkdtemp(), disable_kernel=("products", "products_padded", "fused_forward"),
)
plan = make_plan(config)
from vitcore.origin import find_origin
from vitcore.session import Session
def usage():
    return resource.getrusage(resource.RUSAGE_SELF)
with Session(plan, find_origin(config)) as session:
    state, _ = session.start()
    for step in range(5):
        state = session.executable.step(state, {"lr": 1e-3, **config.hypers(step)})
        if step == 1:
            before = usage().ru_minflt
    print(json.dumps([(usage().ru_minflt - before) // 3, usage().ru_maxrss]))
"""


def faults(what: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, what], capture_output=True, check=True, text=True)
    count, peak = json.loads(done.stdout.splitlines()[-1])
    return count, peak


@pytest.mark.skipif(not host._glibc(), reason="malloc is another's")
def test_large_blocks_are_not_given_back_and_zeroed_each_time() -> None:
    (plain, plain_peak), (kept, kept_peak) = faults("plain"), faults("keep")
    assert plain > 3000 and kept < plain / 4, (plain, kept)
    assert kept_peak < 1.05 * plain_peak


@pytest.mark.parametrize("said", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}])
def test_a_malloc_that_the_person_has_tuned_is_left_alone(
    said: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert host.keep_memory.__wrapped__() is False


@pytest.mark.skipif(not host._glibc(), reason="malloc is another's")
def test_glibc_takes_both_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*host._MALLOC, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert host.keep_memory.__wrapped__() is True


def test_a_library_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*host._MALLOC, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host.os, "confstr", lambda name: None)
    assert host.keep_memory.__wrapped__() is False

    def raises(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(host.os, "confstr", raises)
    assert host.keep_memory.__wrapped__() is False
