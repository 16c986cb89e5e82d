"""The parts of `benchmarks.gpu_session` that are no command of their own; each prints JSON lines.

python -m benchmarks.gpu_parts parity --device cuda
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import memory
from benchmarks.device import describe
from benchmarks.gpu_session import WAYS
from benchmarks.ours import OurLoop, open_once
from benchmarks.rate import Product
from benchmarks.workload import RATE, Workload, batches, weights
from vitcore.backend import resolve
from vitcore.commandline import parse
from vitcore.config import Config
from vitcore.errors import VitcoreError
from vitcore.model.variants import find_variant
from vitcore.plan import Plan, make_plan
from vitcore.tuning import Shape

# A way is wrong where it is this many times as far from float64 as autocast, or plain float32, is.
FAR = 3.0
STEPS = 8


def plan_of(job: Workload, backend: str, flags: str = "") -> Plan:
    """The plan of a job with more flags of vitcore train."""
    config = job.config(backend)
    return make_plan(parse(Config, flags.split(), "gpu_parts", "flags of vitcore train", default=config))


def say(**facts: Any) -> None:
    """One line."""
    print(json.dumps(facts), flush=True)


def machine(backend: str, tiny: bool) -> int:
    """What the device is, how fast it multiplies in bf16 and how fast it copies in its own memory."""
    plan = plan_of(Workload("ViT-Ti_16", 32, 2, "bf16"), backend)
    open_once(plan)
    device = torch.device(plan.backend.device)
    product = Product(plan.backend, "bf16", 256 if tiny else 0)
    source = torch.rand(2**12 if tiny else 2**30, device=device).to(torch.bfloat16)
    copy = Clock(plan, lambda: source.clone())
    say(**describe(device), matrix_tflops=round(product.rate(15) / 1e12, 4), side=product.side,
        copy_gb_per_s=round(2 * source.nbytes / copy.median(15) / 1e9, 1))  # fmt: skip
    return 0


class Clock:
    """Seconds of something, waited for; on the host's clock, as rates of whole steps are."""

    def __init__(self, plan: Plan, run: Callable[[], Any]) -> None:
        self.run, self.wait = run, resolve(plan.backend.wait) if plan.backend.wait else lambda: None

    def median(self, rounds: int) -> float:
        """Of some rounds, after three that do not count."""
        import statistics
        import time

        times = []
        for number in range(rounds + 3):
            self.wait()
            start = time.perf_counter()
            self.run()
            self.wait()
            times += [time.perf_counter() - start] if number > 2 else []
        return statistics.median(times)


def attention(backend: str, tiny: bool) -> int:
    """What the backend measures of each kernel of attention, and the share of the matrix rate that is."""
    plan = plan_of(Workload("ViT-Ti_16", 32, 2, "bf16"), backend)
    open_once(plan)
    if plan.backend.tune is None:
        raise VitcoreError(f"backend {backend!r} measures no kernels of attention; leave the part out by --parts")
    large = [("ViT-B_16", 384, 128), ("ViT-L_16", 384, 64), ("ViT-B_16", 224, 256)]
    for name, side, rows in [("ViT-Ti_16", 32, 2)] if tiny else large:
        v = find_variant(name)
        shape = Shape(rows, v.grid(side, side)[0] ** 2 + 1, v.heads, v.width // v.heads, True)
        found = resolve(plan.backend.tune)(shape)
        # Two products forward, five backward with the scores made again, 2 a multiply-accumulate.
        operations = 14 * rows * v.heads * shape.tokens**2 * shape.head_width
        say(shape=str(shape), milliseconds={n: round(s * 1e3, 3) for n, s in found.items()},
            tflops={n: round(operations / s / 1e12, 3) for n, s in found.items()})  # fmt: skip
    return 0


def parity(backend: str, tiny: bool) -> int:
    """How far each way of running a step is from float64 after some steps, beside how far plain torch is; 1 where one is far."""
    wrong = 0
    for precision in ("fp32", "bf16"):
        job = Workload("ViT-Ti_16", 32 if tiny else 64, 8, precision, 10, gelu="exact")
        open_once(plan_of(job, backend))
        device, first = torch.device(plan_of(job, backend).backend.device), weights(job)
        held = batches(job, device)
        exact = _plain(first, held, device, torch.float64, autocast=False)
        plain = _far(_plain(first, held, device, torch.float32, autocast=precision == "bf16"), exact)
        for way, flags in WAYS.items():
            if backend == "cpu" and ("graph" in way or "compiled" in way):
                continue
            flags = flags if backend != "cpu" else ""
            loop = OurLoop(job, plan_of(job, backend, flags), model=first, held=held)
            for _ in range(STEPS):
                loop.step()
            names = [v.name for v in loop.exe.module.state]
            params = loop.state[names.index(loop.exe.params_name)]
            found = {n: p.detach().double().cpu() for n, p in zip(loop.exe.rt.names, params, strict=True)}
            far = _far(found, exact)
            bad = not far <= FAR * plain
            wrong += bad
            say(precision=precision, way=way, far=far, plain_torch=plain, ratio=round(far / plain, 3), wrong=bad,
                host_reads=loop.exe.stats().host_reads)  # fmt: skip
            loop.close()
    return int(wrong > 0)


def _plain(
    first: Any, held: Sequence[Any], device: torch.device, dtype: torch.dtype, *, autocast: bool
) -> dict[str, Tensor]:
    """The parameters after the same steps of a loop of torch alone."""
    import copy

    model = copy.deepcopy(first).to(device, dtype).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9)
    for step in range(STEPS):
        batch = held[step % len(held)]
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logits = model(batch.images.to(dtype))
        loss = F.cross_entropy(logits if dtype == torch.float64 else logits.float(), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: p.detach().double().cpu() for n, p in model.named_parameters()}


def _far(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    apart = math.sqrt(sum(float((found[n] - e).square().sum()) for n, e in exact.items()))
    return apart / math.sqrt(sum(float(e.square().sum()) for e in exact.values()))


def remat(backend: str, tiny: bool) -> int:
    """Bytes at the highest point of a step, and its rate, with and without blocks that compute twice; each beside what was
    planned."""
    from vitcore.doctor.memory import estimate
    from vitcore.doctor.sizes import sizes_of_config

    job = Workload("ViT-Ti_16", 32, 2, "bf16") if tiny else Workload("ViT-B_16", 384, 64, "bf16")
    first = weights(job)
    for way in ("none", "blocks"):
        plan = plan_of(job, backend, f"--remat {way}")
        open_once(plan)
        device, before = torch.device(plan.backend.device), memory.held(torch.device(plan.backend.device))
        loop = OurLoop(job, plan, model=first)
        loop.step()
        loop.step()
        seconds = Clock(plan, loop.step)
        # Of a step that is not recorded yet: a recorded one holds its memory from step to step.
        peak = memory.held(device) - before + memory.added(device, loop.within, seconds.wait)
        planned = estimate(plan.lowered, sizes_of_config(plan.config, job.variant, job.classes), plan.kernels)
        say(remat=way, peak_gib=round(peak / 2**30, 4), planned_gib=round(planned.peak / 2**30, 4),
            images_per_s=round(job.batch / seconds.median(3 if tiny else 10), 2))  # fmt: skip
        loop.close()
    return 0


PARTS = {"machine": machine, "attention": attention, "parity": parity, "remat": remat}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one part."""
    p = argparse.ArgumentParser("python -m benchmarks.gpu_parts", description=__doc__)
    p.add_argument("part", choices=PARTS)
    p.add_argument("--device", default="cuda", help="backend of vitcore")
    p.add_argument("--tiny", action="store_true")
    asked = p.parse_args(argv)
    return PARTS[asked.part](asked.device, asked.tiny)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except VitcoreError as e:
        print(f"gpu_parts: {e}", file=sys.stderr)
        sys.exit(2)
