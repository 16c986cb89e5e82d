"""What a step of the standard program does, counted and compared with what is written down; no clock, so CI runs it.

    pytest benchmarks/test_counts.py --update-counts

writes benchmarks/counts.json anew; its diff is to be read. Functions that are chosen by measuring this machine are left out, so
that counts are the same on all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.counts import ROBUST, count_step
from benchmarks.workload import Workload
from vitcore.backend import Kernel, resolve
from vitcore.plan import Plan, make_plan
from vitcore.plugins import load_plugins
from vitcore.step.ir import walk
from vitcore.step.ops import FUNCTIONS

FILE = Path(__file__).parent / "counts.json"
JOBS = {
    "fp32": Workload("ViT-digits", 8, 8, "fp32", classes=10),
    "bf16": Workload("ViT-digits", 8, 8, "bf16", classes=10),
    "fp32, 4 micro-steps": Workload("ViT-digits", 8, 8, "fp32", classes=10, accumulation=4),
    "bf16, 4 micro-steps": Workload("ViT-digits", 8, 8, "bf16", classes=10, accumulation=4),
}
Fn = Callable[..., Any]


def standard_plan(job: Workload, name: str) -> Plan:
    """Of the standard program, clipping and all."""
    measured = sorted({k.name for k in load_plugins().kernels(name) if k.op in FUNCTIONS})
    return make_plan(job.config(name, max_grad_norm=1.0, disable_kernel=tuple(measured)))


def changes(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Facts that are not as they were, by name."""
    return [f"{fact}: {expected.get(fact)} were expected, {found[fact]} are counted" for fact in ROBUST
            if found[fact] != expected.get(fact)]  # fmt: skip


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """`--backend`, or the processor, which is everywhere."""
    asked = request.config.getoption("--backend")
    return "cpu" if asked == "auto" else str(asked)


def expected(backend: str, what: str) -> dict[str, Any]:
    """What is written down."""
    held: dict[str, Any] = json.loads(FILE.read_text()).get(backend, {})
    assert what in held, (
        f"nothing is written down for {backend}, {what}; pytest benchmarks/test_counts.py --update-counts"
    )
    found: dict[str, Any] = held[what]
    return found


@pytest.mark.parametrize("what", JOBS)
def test_a_step_does_what_is_written_down(what: str, backend: str, request: pytest.FixtureRequest) -> None:
    job = JOBS[what]
    counted = count_step(job, standard_plan(job, backend))
    if request.config.getoption("--update-counts"):
        held = json.loads(FILE.read_text()) if FILE.exists() else {}
        held.setdefault(backend, {})[what] = {fact: counted[fact] for fact in ROBUST}
        FILE.write_text(json.dumps(held, indent=1) + "\n")
    assert not changes(expected(backend, what), counted)
    # Whatever is written down:
    assert counted["host reads"] == 0
    assert counted["forwards"] == counted["backwards"] == job.accumulation
    assert counted["parameters written"] == 1  # one pass of the optimizer over all of them
    if job.precision == "fp32":
        assert counted["parameters cast"] == 0


def planted(plan: Plan, ops: tuple[str, ...], change: Callable[[Fn], Fn]) -> Plan:
    """The plan with the chosen kernel of the first of these ops that it has changed, and nothing else."""
    chosen = {op.name: op.attrs["impl"] for op in walk(plan.lowered["train"].ops) if "impl" in op.attrs}
    name = next(op for op in ops if op in chosen)

    def changed(k: Kernel) -> Kernel:
        if (k.op, k.name) != (name, chosen[name]):
            return k
        return replace(k, fn=change(k.fn if callable(k.fn) else resolve(k.fn)))

    return replace(plan, kernels=tuple(map(changed, plan.kernels)))


def with_a_read(kernel: Fn) -> Fn:
    """The kernel, and one look at its result."""

    def reads(rt: Any, *args: Any, **kwargs: Any) -> Any:
        out = kernel(rt, *args, **kwargs)
        float(out[0])
        return out

    return reads


def with_a_cast(kernel: Fn) -> Fn:
    """The kernel, after one more narrow copy of every parameter."""

    def casts(rt: Any, *args: Any, **kwargs: Any) -> Any:
        narrow = [p.to(torch.bfloat16) for p in rt.own_params()]
        assert narrow
        return kernel(rt, *args, **kwargs)

    return casts


def with_a_second_pass(kernel: Fn) -> Fn:
    """The kernel, and one more pass that decays what it has updated."""

    def passes(rt: Any, *args: Any, **kwargs: Any) -> Any:
        out = kernel(rt, *args, **kwargs)
        with torch.no_grad():
            for p in out[0]:
                p.mul_(0.999)
        return out

    return passes


def twice(kernel: Fn) -> Fn:
    """The forward computed for nothing besides."""

    def computes(rt: Any, *args: Any, **kwargs: Any) -> Any:
        rt.model(args[1].images.float())
        return kernel(rt, *args, **kwargs)

    return computes


LEAF = ("model.grad", "model.forward")


@pytest.mark.parametrize(
    ("ops", "change", "named"),
    [
        (LEAF, with_a_read, "host reads"),
        (LEAF, with_a_cast, "parameters cast"),
        (("opt.update",), with_a_second_pass, "parameters written"),
        (LEAF, twice, "matrix products"),
    ],
)
@pytest.mark.parametrize("what", ["fp32", "bf16"])
def test_what_was_planted_is_named(what: str, ops: tuple[str, ...], change: Any, named: str, backend: str) -> None:
    plan = planted(standard_plan(JOBS[what], backend), ops, change)
    found = changes(expected(backend, what), count_step(JOBS[what], plan))
    assert [line.partition(":")[0] for line in found] == [named], found


def test_a_plan_with_nothing_planted_counts_as_before(backend: str) -> None:
    """So what is named above comes from what was planted, and not from planting."""
    plan = planted(standard_plan(JOBS["bf16"], backend), LEAF, lambda kernel: lambda rt, *a, **k: kernel(rt, *a, **k))
    assert not changes(expected(backend, "bf16"), count_step(JOBS["bf16"], plan))
