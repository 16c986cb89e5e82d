"""What a first step waits for: modules that are imported before it, as counts, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitcore.started import IMPORTED, process_start

# None of them is of use to a first step on pictures that are at hand; torch's own start imports none of them either.
UNUSED = {"torchvision", "sklearn", "scipy", "pandas", "tensorboard", "google", "torch._dynamo", "torch._inductor", "sympy",
          "matplotlib", "timm", "transformers", "datasets", "safetensors.numpy", "PIL", "simplejpeg", "rich", "tyro", "typeguard",
          "asyncio", "unittest", "absl", "fsspec", "mpmath"}  # fmt: skip
# Modules beyond those that `import torch` brings; 204 are counted.
MOST_BESIDE_TORCH = 240
# Modules of a whole process that describes and prints: verb and arguments, and what is counted is in the comment.
MOST_WITHOUT_TORCH = {
    ("--help",): 110,  # 83
    ("backends",): 230,  # 199
    ("recipes",): 380,  # 337
    ("lower", "--backend", "hpu-lazy"): 420,  # 370
    ("train", "--help"): 390,  # 342
}

# The first step of a run, as the trainer takes it; then the process ends.
FIRST_STEP = """
import json, os, sys
from vitcore import cli
from vitcore.runtime.executable import Executable
took = Executable.step
def step(self, *args):
    state = took(self, *args)
    self.rt.wait()
    print(json.dumps(sorted(sys.modules)), flush=True)
    os._exit(0)
import vitcore.stages  # the module that imports torch late
Executable.step = step
cli.main(["train", *sys.argv[1:]])
"""
MODULES = "import json, sys, torch; print(json.dumps(sorted(sys.modules)))"


def modules(done: Any) -> set[str]:
    assert done.code == 0, done.err
    return set(json.loads(done.out.splitlines()[-1]))


@pytest.fixture(scope="module")
def of_torch(shell_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What `import torch` alone brings, here and now."""
    return modules(shell_in(tmp_path_factory.mktemp("torch"), "-c", MODULES))


def test_the_first_step_ever_of_the_defaults_imports_torch_and_little_else(
    shell: Callable[..., Any], of_torch: set[str], tmp_path: Path
) -> None:
    # The first ever: what is measured once for a machine is measured here.
    found = modules(shell("-c", FIRST_STEP, VITCORE_CACHE=tmp_path / "cache"))
    assert (tmp_path / "cache" / "tuning").is_dir()
    assert "torch" in found and "vitcore.training" in found
    assert not (found - of_torch) & UNUSED
    beside = found - of_torch
    assert len(beside) <= MOST_BESIDE_TORCH, sorted(beside)


def test_flags_bring_their_parser_and_nothing_else(shell: Callable[..., Any], of_torch: set[str]) -> None:
    found = modules(shell("-c", FIRST_STEP, "--num_steps", 5, "--backend", "cpu"))
    of_the_parser = {"tyro", "typeguard", "asyncio", "unittest"}
    assert "tyro" in found and not (found - of_torch) & (UNUSED - of_the_parser)


def test_compilers_stay_away_in_every_eager_run(shell: Callable[..., Any], of_torch: set[str]) -> None:
    # All but --remat, whose checkpoint is torch's own, which asks torch._dynamo whether something is being traced.
    flags = "--precision bf16 --ema 0.9 --optimizer muon --dropout 0.1 --sam_rho 0.05 --freeze ^pos --backend cpu"
    found = modules(shell("-c", FIRST_STEP, *flags.split())) - of_torch
    assert not found & {"torch._dynamo", "torch._inductor", "sympy", "torchvision"}


@pytest.mark.parametrize("argv", MOST_WITHOUT_TORCH, ids=" ".join)
def test_what_prints_is_small(argv: tuple[str, ...], shell: Callable[..., Any]) -> None:
    code = """
import contextlib, io, json, sys
from vitcore import cli
with contextlib.redirect_stdout(io.StringIO()):
    try:
        cli.main(sys.argv[1:])
    except SystemExit:
        pass
print(json.dumps(sorted(sys.modules)))
"""
    found = modules(shell("-c", code, *argv))
    assert not found & {"torch", "numpy"}
    assert len(found) <= MOST_WITHOUT_TORCH[argv], sorted(found)


@pytest.mark.parametrize("policies", [False, True])
def test_who_forks_workers_imports_torchvision_for_policies_only(policies: bool, shell: Callable[..., Any]) -> None:
    code = """
import json, os, signal, socket, sys, threading
from vitcore.data.loading.keeper import keep
from vitcore.data.loading.wire import Wire
mine, its = socket.socketpair()
wire = Wire(mine)
os._exit = lambda code: None  # what ends a keeper
signal.signal = lambda *args: None  # which only a main thread may call
thread = threading.Thread(target=keep, args=(its.detach(), sys.argv[1] == "True"))
thread.start()
assert list(wire.receive()) == ["ready"]
wire.close()
thread.join()
print(json.dumps(sorted(sys.modules)))
"""
    found = modules(shell("-c", code, policies))
    assert {"torch", "PIL.Image", "simplejpeg"} <= found
    assert ("torchvision" in found) is policies


# ---- how long it took is said ----


@pytest.mark.skipif(sys.platform != "linux", reason="only there is the start of a process known")
def test_a_process_knows_when_it_was_started() -> None:
    before = time.monotonic()
    code = "import time; time.sleep(0.5); from vitcore.started import *; print(process_start(), IMPORTED)"
    began, imported = map(
        float, subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.split()
    )
    assert before - 0.02 <= began <= imported - 0.5, "to a hundredth, and before what it slept"


@pytest.mark.parametrize(
    "said", ["", "7 (a) b) S 1 2", "7 (python) S " + "1 " * 18 + "x", "7 (python) S " + "9" * 18 * 2]
)
def test_where_the_system_does_not_say_it_is_the_import(said: str, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    assert process_start(stat) == IMPORTED
    stat.write_text(said)
    assert process_start(stat) == IMPORTED


def test_a_command_whose_name_has_parentheses_and_spaces_is_read(tmp_path: Path) -> None:
    ticks, stat = os.sysconf("SC_CLK_TCK"), tmp_path / "stat"
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic() + IMPORTED - 10
    stat.write_text(f"7 (a b) (c) S {' '.join('1' * 18)} {round(since_boot * ticks)} 5 6")
    assert process_start(stat) == pytest.approx(IMPORTED - 10, abs=0.05)


def test_a_run_says_once_how_long_the_first_step_took_and_records_it(
    shell: Callable[..., Any], quick: list[str], tmp_path: Path
) -> None:
    before = time.monotonic()
    done = shell("-m", "vitcore.train", *quick, "--json")
    passed = time.monotonic() - before
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    seconds = result["seconds_to_first_step"]
    assert 0 < seconds < passed, "from the start of its process"
    said = [line for line in done.err.splitlines() if line.startswith("first step after ")]
    assert said == [f"first step after {seconds:.1f} s"]
    lines = [json.loads(line) for line in (tmp_path / result["run_dir"] / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["event"] == "start" and lines[0]["step"] == 1
    assert [e.get("seconds_to_first_step") for e in lines if e["event"] == "start"] == [seconds]
    # It goes on from its end: no step is taken, and none was the first.
    again = shell("-m", "vitcore.train", *quick, "--json", "--resume", result["run_dir"])
    assert again.code == 0 and json.loads(again.out.splitlines()[-1])["seconds_to_first_step"] is None
    assert "first step" not in again.err


def test_from_python_it_counts_from_the_call(shell: Callable[..., Any], tmp_path: Path) -> None:
    from vitcore.training import Result

    assert math.isnan(Result.seconds_to_first_step)
    code = "\n".join([
        "import sys, time, torch, vitcore",
        "time.sleep(3)",
        "before = time.monotonic()",
        "run = vitcore.recipe('digits', threads=1, eval_every=0, backend='cpu', output_dir=sys.argv[1]).train(num_steps=1)",
        "assert 0 < run.seconds_to_first_step < time.monotonic() - before, run",
    ])  # fmt: skip
    assert shell("-c", code, tmp_path).code == 0


def test_without_tensorboard_a_run_is_refused_before_its_first_step(
    shell: Callable[..., Any], quick: list[str]
) -> None:
    hide = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "tensorboard" else find(name, *more)
from vitcore import cli
sys.exit(cli.main(["train", *sys.argv[1:]]))
"""
    done = shell("-c", hide, *quick)
    assert done.refusal == "tensorboard is missing, which a run writes its metrics with; pip install tensorboard"
