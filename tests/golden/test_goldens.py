"""The programs of the shipped step, as text, for every shipped backend, and what can be counted in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from vitcore.plan import choose_kernels
from vitcore.plugins import load_plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower, pipeline
from vitcore.step.text import parse_module

BACKENDS = ("cpu", "cuda", "hpu-lazy", "hpu-eager")
PRECISIONS = ("fp32", "bf16")
ACCUMULATIONS = (1, 16)
LOWERED = [(b, p, n) for b in BACKENDS for p in PRECISIONS for n in ACCUMULATIONS] + [("cpu", "bf16-casts", 1)]
# Other rules than the plain one, and what a recipe may add to it, each for every backend.
RULES: dict[str, dict[str, Any]] = {
    "augreg": {"optimizer": "adamw", "accumulation": 2, "ema": True, "augment": ("flip", "erase", "mix"),
               "loss": "sigmoid", "label_smoothing": 0.1, "patch_dropout": 0.25},
    "sam": {"optimizer": "sgdm", "sam": True},
}  # fmt: skip
# Backends with a kernel for forward and backward in one; both compute in bf16 by narrow weights.
ONE_OP = ("cpu", "cuda")
Golden = Callable[[str, str], None]


def neutral(accumulation: int) -> str:
    return str(build(StepSpec(name="golden", optimizer="sgdm", accumulation=accumulation)))


def lowered(
    backend: str, precision: str, accumulation: int, enabled: Sequence[str] = (), disabled: Sequence[str] = ()
) -> str:
    return lowered_text(neutral(accumulation), backend, precision, enabled, disabled)


def lowered_text(
    module: str, backend: str, precision: str, enabled: Sequence[str] = (), disabled: Sequence[str] = ()
) -> str:
    plugins = load_plugins()
    kernels, _ = choose_kernels(plugins, plugins.backend(backend), enabled=enabled)
    lowering = Lowering(plugins.backend(backend), kernels, precision=precision)
    return str(lower(parse_module(module), lowering, pipeline(disabled=disabled)))


def file_of(backend: str, precision: str, accumulation: int) -> str:
    return f"{backend}-{precision}-accum{accumulation}"


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_the_neutral_module_is_its_golden_text(accumulation: int, golden: Golden) -> None:
    golden(f"neutral-accum{accumulation}", neutral(accumulation))


@pytest.mark.parametrize(("backend", "precision", "accumulation"), LOWERED)
def test_a_lowered_module_is_its_golden_text(backend: str, precision: str, accumulation: int, golden: Golden) -> None:
    golden(file_of(backend, precision, accumulation), lowered(backend, precision, accumulation))


@pytest.mark.parametrize("backend", [None, *BACKENDS])
@pytest.mark.parametrize("rule", RULES)
def test_another_rule_is_its_golden_text_too(rule: str, backend: str | None, golden: Golden) -> None:
    text = str(build(StepSpec(name="golden", **RULES[rule])))
    golden(f"{backend or 'neutral'}-{rule}", lowered_text(text, backend, "fp32") if backend else text)


def test_every_golden_file_belongs_to_a_test() -> None:
    files = {path.stem for path in (Path(__file__).parent / "programs").iterdir()}
    rules = {f"{backend}-{rule}" for backend in ("neutral", *BACKENDS) for rule in RULES}
    assert files == rules | {file_of(*each) for each in LOWERED} | {f"neutral-accum{n}" for n in ACCUMULATIONS}


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


# The vendor's update flushes twice inside: what it is given, and its own work. What follows is left to the region's mark.
UPDATE = ["fused_sgd 0/2/0", "update"]


@pytest.mark.parametrize(("accumulation", "marks"), [(1, 3), (16, 2 * 16 + 1)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_lazy_step_is_marked_after_forward_backward_and_update_and_flushed_twice_more(
    precision: str, accumulation: int, marks: int
) -> None:
    lines = train("hpu-lazy", accumulation, precision)
    assert flushes(lines) == ["forward", "backward", *UPDATE]
    assert executed(lines, "rt.mark") == marks
    # With accumulation, the division and the clipping of the sum are a part of the update's region.
    assert executed(lines, "rt.region") == marks


def test_the_fused_clipping_is_left_out_by_default_as_it_flushes_before_and_after_its_work() -> None:
    module = lowered("hpu-lazy", "bf16", 16, ("fused_clip_norm",))
    text = str(parse_module(module)["train"]).splitlines()
    assert flushes(text) == ["forward", "backward", "fused_clip_norm 1/0/1", *UPDATE]
    assert "fused_clip_norm" not in lowered("hpu-lazy", "bf16", 16)
    assert "fused_clip_norm" in lowered("hpu-eager", "bf16", 16), "without marks it costs none"


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
    assert executed(lines, "data.next") + executed(lines, "data.peek") == accumulation
    fused = backend in ONE_OP
    for op in ("data.put", "rng.split", *(("model.grad",) if fused else ("model.forward", "model.backward"))):
        assert executed(lines, op) == accumulation, op
    assert executed(lines, "metrics.add") == accumulation + 1
    assert executed(lines, "metrics.read") == 0  # a step never waits for the device
    sums = (executed(lines, "grads.zero"), executed(lines, "grads.add"))
    # Forward, backward and the sum in one op is given the sum so far.
    assert sums == ((1, 0 if fused else accumulation) if accumulation > 1 else (0, 0))
    assert ", %ga {" in "\n".join(lines) if fused and accumulation > 1 else ", %ga {" not in "\n".join(lines)
    # Narrow weights are made once, whatever the number of micro-batches.
    assert executed(lines, "params.narrow") == (1 if fused else 0)


@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-eager"])
@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
def test_a_device_that_is_not_lazy_is_never_marked(backend: str, accumulation: int) -> None:
    assert executed(train(backend, accumulation), "rt.mark") == 0


def test_precision_is_all_that_differs_between_the_goldens_of_two_precisions() -> None:
    for backend in BACKENDS:
        for n in ACCUMULATIONS:
            # Narrow weights are an op of their own, and kernels of the model's functions may take them alone.
            without = ("narrow_weights",)
            bf16, fp32 = lowered(backend, "bf16", n, disabled=without), lowered(backend, "fp32", n, disabled=without)
            assert bf16.count("autocast=bf16") == 2
            # Which attention is asked first may depend on who casts.
            bf16, fp32 = (re.sub(r"self_attention=\w+", "self_attention=one", text) for text in (bf16, fp32))
            assert bf16.replace("autocast=bf16, ", "").replace("precision=bf16", "precision=fp32") == fp32


@pytest.mark.parametrize("accumulation", ACCUMULATIONS)
@pytest.mark.parametrize("backend", ONE_OP)
def test_narrow_weights_are_all_that_differs_where_they_carry_out_the_precision(
    backend: str, accumulation: int
) -> None:
    narrow, wide = (
        lowered(backend, "bf16", accumulation).splitlines(),
        lowered(backend, "fp32", accumulation).splitlines(),
    )
    made = [line for line in narrow if "params.narrow" in line]
    assert [line.strip() for line in made] in (
        ["%pn = params.narrow %p {impl=reference} : weights<bf16>"] * 2,
        # Where the region holds nothing else that is used outside, its own name is inside alone.
        [
            "%pn_ = params.narrow %p {impl=reference} : weights<bf16>",
            "%pn = params.narrow %p {impl=reference} : weights<bf16>",
        ],
    )
    kept = [re.sub(r"self_attention=\w+", "", line.replace("%pn,", "%p,")) for line in narrow if line not in made]
    kept = [line.replace("precision=bf16", "precision=fp32") for line in kept]
    for old, new in (("%g0, %pn = ", "%g0 = "), ("zero_narrow", "zero"), ("yield %g0_, %pn_", "yield %g0_")):
        kept = [line.replace(old, new) for line in kept]
    assert kept == [re.sub(r"self_attention=\w+", "", line) for line in wide]
