"""Pictures a second of a training step, by model, precision and batch, and what belongs to the number.

    pytest benchmarks/test_throughput.py --backend cpu --models ViT-B_16 --precisions fp32,bf16 --batches 8 --img_size 224

The timed rounds are the step alone, of a user's own path from settings to executable. Everything else is in the benchmark's
`extra_info`, and so in the files that pytest-benchmark writes (`--benchmark-json`, `--benchmark-autosave`), which
`vitcore bench compare` reads.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.counts import count_step
from benchmarks.device import describe
from benchmarks.ours import OurLoop
from benchmarks.rate import Product
from benchmarks.split import split_step
from benchmarks.start import measure
from benchmarks.workload import Workload
from vitcore.plan import Plan, make_plan
from vitcore.profiling.names import PHASES


def uncaptured(plan: Plan) -> Plan:
    """The plan, or where its step is recorded as one graph the same without that: of a replay nothing is to be seen inside."""
    if plan.backend.capture is None:
        return plan
    return make_plan(replace(plan.config, disable_pass=(*plan.config.disable_pass, "capture_step")))


def test_training_step(
    benchmark: Any, job: Workload, request: pytest.FixtureRequest, report: Callable[[str], None]
) -> None:
    option = request.config.getoption
    plan = make_plan(job.config(option("--backend")))
    # First, and in steps of their own: nothing of it is on in the timed rounds.
    openly = uncaptured(plan)
    counts, parts = count_step(job, openly), split_step(job, openly)
    others = memory.held(torch.device(plan.backend.device))
    loop = OurLoop(job, plan)
    device, wait = loop.exe.rt.device, loop.exe.rt.wait
    for _ in range(2):
        loop.step()
    held = memory.held(device) - others
    added = memory.added(device, loop.within, wait)
    product = Product(plan.backend, job.precision, option("--gemm"))
    before = product.rate()

    def step() -> None:
        loop.step()
        wait()

    benchmark.pedantic(step, rounds=option("--rounds"), iterations=1, warmup_rounds=1)
    gemm = statistics.mean((before, product.rate()))
    seconds = benchmark.stats.stats.median
    fingerprint = loop.exe.fingerprint
    loop.close()
    started = measure(job, plan.backend.name, option("--threads"))
    benchmark.group = f"{job.model} at {job.img_size} px, {job.precision}"
    benchmark.extra_info |= {
        **describe(device), "backend": plan.backend.title, "fingerprint": fingerprint, "model": job.model,
        "img_size": job.img_size, "precision": job.precision, "batch": job.batch, "images_per_second": job.batch / seconds,
        "mfu": job.operations / seconds / gemm, "operations": job.operations, "gemm_operations_per_second": gemm,
        "split_seconds": parts, "peak_bytes": held + added, "held_bytes": held, "start_seconds": started["seconds"],
        "compile_seconds": started["compiling"], "counts": counts,
    }  # fmt: skip
    shares = ", ".join(f"{phase} {parts[phase] / sum(parts.values()):.0%}" for phase in PHASES)
    report(f"{benchmark.group}, batch {job.batch}: {job.batch / seconds:.1f} images/s, {seconds * 1e3:.1f} ms, MFU "
           f"{job.operations / seconds / gemm:.1%}; {shares}; peak {(held + added) / 1e6:.1f} MB; first step after "
           f"{started['seconds']:.1f} s, {started['compiling']:.2f} s of it compiling")  # fmt: skip
    assert seconds > 0
