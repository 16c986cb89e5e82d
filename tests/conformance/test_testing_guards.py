"""The guards that `vitcore.testing` gives to anyone, each shown to see what it is for and to let the rest be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vitcore.errors import VitcoreError
from vitcore.runtime.executable import Executable
from vitcore.testing import (
    GuardError,
    HostReadError,
    compile_budget,
    counted,
    flushes_as_predicted,
    no_fallbacks,
    no_hidden_copies,
    no_host_reads,
)
from vitcore.testing.problem import hyper, subject

SQUARE = torch.arange(16.0).reshape(4, 4)


@pytest.fixture
def exe() -> Iterator[Executable]:
    cpu = subject("cpu")
    made = cpu.open(cpu.spec("sgdm", 2))
    yield made
    made.close()


def test_counts_are_of_the_block_alone(exe: Executable) -> None:
    state = exe.step(exe.init(0), hyper(0))
    with counted(exe) as seen:
        state = exe.step(exe.step(state, hyper(1)), hyper(2))
        with pytest.raises(VitcoreError, match="steps is not known before the block has ended"):
            _ = seen.steps
    assert (seen.steps, seen.marks, seen.host_reads) == (2, 0, 0)
    with counted(exe) as seen:
        exe.log(state)
    assert (seen.steps, seen.host_reads) == (0, 1)


def test_flushes_that_nobody_predicted_are_seen(exe: Executable) -> None:
    state = exe.init(0)
    with flushes_as_predicted(exe, steps=1):
        state = exe.step(state, hyper(0))
    with (
        pytest.raises(GuardError, match=r"the texts say 0 flushes, 1 were counted \(1 marks\)"),
        flushes_as_predicted(exe, steps=1),
    ):
        exe.step(state, hyper(1))
        exe.rt.mark()


@pytest.mark.parametrize("guard", [compile_budget, no_fallbacks])
def test_a_device_that_does_not_count_is_no_proof(guard: Callable[..., Any], exe: Executable) -> None:
    with pytest.raises(VitcoreError, match=r"backend 'cpu' counts no (compiles|fallbacks)"), guard(exe):
        pass


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (
            lambda: SQUARE.double(),
            r"_to_copy copies 64 bytes, from torch.float32 to torch.float64 \(.*test_testing_guards",
        ),
        (lambda: SQUARE.T.contiguous(), "clone copies 64 bytes, to another layout"),
        (lambda: SQUARE.T.reshape(16), "copies 64 bytes"),
        (lambda: SQUARE.clone(), "clone copies 64 bytes, as it is"),
        (lambda: torch.empty(4, 4).copy_(SQUARE), "copy_ copies 64 bytes"),
        (lambda: SQUARE.to("meta"), "from cpu to meta"),
    ],
)
def test_a_copy_is_seen_with_its_line(act: Callable[[], Any], words: str) -> None:
    with pytest.raises(GuardError, match=words), no_hidden_copies():
        act()
    with no_hidden_copies(most_bytes=64):
        act()


@pytest.mark.parametrize(
    "act", [lambda: SQUARE * 2, lambda: SQUARE.T @ SQUARE, lambda: SQUARE.reshape(16), lambda: SQUARE.float()]
)
def test_work_and_views_are_no_copies(act: Callable[[], Any]) -> None:
    with no_hidden_copies():
        act()


def test_the_host_guard_is_anyones() -> None:
    with pytest.raises(HostReadError, match="_local_scalar_dense"), no_host_reads():
        SQUARE[0, 0].item()


def test_importing_the_kit_imports_no_torch() -> None:
    code = "import sys, vitcore.testing, vitcore.conformance; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


LAZY = """
import json, torch
from vitcore.testing.worker import opened
lazy = opened("lazysim", 0)
from vitcore.testing import GuardError, compile_budget, no_fallbacks
from vitcore.testing.problem import hyper
exe = lazy.open(lazy.spec("sgdm"))
state, said = lazy.train(exe, 3), []
with compile_budget(exe), no_fallbacks(exe):
    state = exe.step(state, hyper(3))
for guard, act in ((compile_budget, lambda: (torch.ones(3).to("lazy") * 7 - 2).sum().cpu()),
                   (no_fallbacks, lambda: torch.lerp(*torch.ones(2, 3).to("lazy"), 0.5))):
    try:
        with guard(exe):
            act()
    except GuardError as e:
        said.append(str(e))
print(json.dumps(said))
"""


def test_on_a_lazy_device_compilations_and_fallbacks_are_seen(lazysim: Any, tmp_path: Path) -> None:
    done = lazysim("-c", LAZY)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled, fell = json.loads(done.stdout.splitlines()[-1])
    assert compiled.startswith("1 graphs were compiled, 0 are allowed") and "fell back to the host" in fell
