"""The programs of the shipped step, as text, for every shipped backend, and what can be counted in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vitcore.plugins import load_plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower
from vitcore.step.text import parse_module

BACKENDS = ("cpu", "cuda", "hpu-lazy", "hpu-eager")
PRECISIONS = ("fp32", "bf16")
ACCUMULATIONS = (1, 16)
LOWERED = [(b, p, n) for b in BACKENDS for p in PRECISIONS for n in ACCUMULATIONS] + [("cpu", "bf16-casts", 1)]
Golden = Callable[[str, str], None]


def neutral(accumulation: int) -> str:
    return str(build(StepSpec(name="golden", optimizer="sgdm", accumulation=accumulation)))


def lowered(backend: str, precision: str, accumulation: int) -> str:
    plugins = load_plugins()
    kernels = [*plugins.kernels(backend), *REFERENCE]
    lowering = Lowering(plugins.backend(backend), kernels, precision=precision)
    return str(lower(parse_module(neutral(accumulation)), lowering))


def file_of(backend: str, precision: str, accumulation: int) -> str:
    return f"{backend}-{precision}-accum{accumulation}"


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_the_neutral_module_is_its_golden_text(accumulation: int, golden: Golden) -> None:
    golden(f"neutral-accum{accumulation}", neutral(accumulation))


@pytest.mark.parametrize(("backend", "precision", "accumulation"), LOWERED)
def test_a_lowered_module_is_its_golden_text(backend: str, precision: str, accumulation: int, golden: Golden) -> None:
    golden(file_of(backend, precision, accumulation), lowered(backend, precision, accumulation))


def test_every_golden_file_belongs_to_a_test() -> None:
    files = {path.stem for path in (Path(__file__).parent / "programs").iterdir()}
    assert files == {file_of(*each) for each in LOWERED} | {f"neutral-accum{n}" for n in ACCUMULATIONS}


# ---- counts ----


def train(backend: str, accumulation: int, precision: str = "bf16") -> list[str]:
    """The lines of the golden's `@train`."""
    path = Path(__file__).parent / "programs" / f"{file_of(backend, precision, accumulation)}.txt"
    found = re.search(r"^lowered:\S+ @train.*?^\]$", path.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found.group().splitlines()


def executed(lines: list[str], op: str) -> int:
    """How often an op runs in a step: in a loop of n rounds each line counts n times."""
    count, rounds, loop_indent = 0, 1, ""
    for line in lines:
        indent = re.match(" *", line).group()  # type: ignore[union-attr]
        if loop := re.search(r"= repeat .*\{n=(\d+)\}", line):
            rounds, loop_indent = int(loop.group(1)), indent
        elif line == f"{loop_indent}]" and rounds > 1:
            rounds = 1
        count += rounds * bool(re.search(rf"(?:^|= ){re.escape(op)}(?: |$)", line.strip()))
    return count


def flushes(lines: list[str]) -> list[str]:
    """What the lines flush by, in order: marks, and kernels with how often before, inside and after their work."""
    found = [re.search(r"rt\.mark \{after=(\w+)\}|flushes=(\S+), impl=(\w+)", line) for line in lines]
    return [m[1] or f"{m[3]} {m[2]}" for m in found if m]


# The vendor's kernels flush by themselves: clipping before its work (what backward left, so that no mark need stand there)
# and after it, the update twice inside.
FUSED = ["fused_clip_norm 1/0/1", "fused_sgd 0/2/0", "update"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_without_accumulation_a_lazy_step_is_flushed_six_times(precision: str) -> None:
    lines = train("hpu-lazy", 1, precision)
    assert flushes(lines) == ["forward", *FUSED]
    assert (executed(lines, "rt.mark"), executed(lines, "rt.region")) == (2, 4)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_with_accumulation_a_lazy_step_is_marked_twice_a_micro_batch_and_flushed_six_times_more(precision: str) -> None:
    lines = train("hpu-lazy", 16, precision)
    assert flushes(lines) == ["forward", "backward", *FUSED, "zero"]
    assert (executed(lines, "rt.mark"), executed(lines, "rt.region")) == (2 * 16 + 2, 2 * 16 + 4)


@pytest.mark.parametrize(("accumulation", "marks"), [(1, 3), (16, 2 * 16 + 1)])
def test_with_reference_kernels_a_lazy_step_is_marked_after_forward_backward_and_update(
    accumulation: int, marks: int
) -> None:
    lowering = Lowering(load_plugins().backend("hpu-lazy"), REFERENCE, precision="bf16")
    program = str(lower(parse_module(neutral(accumulation)), lowering)["train"]).splitlines()
    assert flushes(program) == ["forward", "backward", "update"]
    assert executed(program, "rt.mark") == executed(program, "rt.region") == marks


@pytest.mark.parametrize(("backend", "accumulation"), [(b, n) for b in BACKENDS for n in ACCUMULATIONS])
def test_gradients_are_reduced_scaled_and_applied_once_a_step(backend: str, accumulation: int) -> None:
    lines = train(backend, accumulation)
    assert [executed(lines, op) for op in ("grads.scale", "grads.all_reduce", "grads.clip", "opt.update")] == [1] * 4
    for op in ("data.next", "data.put", "rng.split", "model.forward", "model.backward"):
        assert executed(lines, op) == accumulation, op
    assert executed(lines, "metrics.add") == accumulation + 1
    assert executed(lines, "metrics.read") == 0  # a step never waits for the device
    sums = (executed(lines, "grads.zero"), executed(lines, "grads.add"))
    assert sums == ((1, accumulation) if accumulation > 1 else (0, 0))


@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-eager"])
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_a_device_that_is_not_lazy_is_never_marked(backend: str, accumulation: int) -> None:
    assert executed(train(backend, accumulation), "rt.mark") == 0


def test_precision_is_all_that_differs_between_the_goldens_of_two_precisions() -> None:
    for backend in BACKENDS:
        for n in ACCUMULATIONS:
            bf16, fp32 = lowered(backend, "bf16", n), lowered(backend, "fp32", n)
            assert bf16.count("autocast=bf16") == 2
            assert bf16.replace("autocast=bf16, ", "").replace("precision=bf16", "precision=fp32") == fp32
