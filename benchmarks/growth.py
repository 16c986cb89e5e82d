"""How a step's time grows with tokens, width, depth and batch, and what accumulation costs: `python -m benchmarks.growth`.

Along each axis all points are timed in turn, a step each in a round, in orders that are balanced over the rounds. The exponent is
that of a line through the logarithms of the medians; beside it stands the exponent of the nominal operations at the same points,
which is not a whole number either (of width, say, a part grows linearly and a part with its square). An exponent below it means
that larger steps are better at filling the machine.

Accumulation: one step of 16 micro-steps, without its update, over the compute (input, forward, backward) of 16 steps of one. The
parts are timed as benchmarks/split.py does, which on an accelerator waits after each kernel and so makes them longer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.orders import balanced
from benchmarks.workload import Workload
from vitcore.cli import run
from vitcore.errors import VitcoreError
from vitcore.profiling.names import BACKWARD, FORWARD, INPUT, UPDATE

LEAST_POINTS = 4
MICRO_STEPS = 16


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--backend", default="auto", help="of vitcore")
    p.add_argument("--precision", default="fp32")
    p.add_argument("--model", default="ViT-Ti_16", help="the variant that is varied")
    p.add_argument("--img_size", type=int, default=96, help="pixels a side, where that is not varied")
    p.add_argument("--batch", type=int, default=4, help="pictures a step, where that is not varied")
    p.add_argument("--sides", default="64,96,128,192", help="pixels a side, by comma: the tokens' axis")
    p.add_argument("--widths", default="192,384,576,768", help="with as many heads in proportion")
    p.add_argument("--depths", default="3,6,12,24", help="blocks")
    p.add_argument("--batches", default="2,4,8,16", help="pictures a step")
    p.add_argument("--axes", default="tokens,width,depth,batch,accumulation", help="some of these, by comma")
    p.add_argument("--rounds", type=int, default=15)
    p.add_argument("--threads", type=int, default=0, help="of torch's operators; 0: its own choice")
    p.add_argument("--json", dest="file", type=Path, help="write times and results here")
    return p


def points(job: Workload, axis: str, values: Sequence[int]) -> list[tuple[int, Workload]]:
    """The jobs along an axis, each with the number that grows."""
    field = {"tokens": "img_size"}.get(axis, axis)
    jobs = [replace(job, **{field: value}) for value in values]
    if axis != "tokens":
        return list(zip(values, jobs))
    slots = 1 if job.variant.pool == "token" else 0
    grids = [job.variant.grid(value, value) for value in values]
    return [(rows * columns + slots, j) for (rows, columns), j in zip(grids, jobs)]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a line through the logarithms."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponent_interval(sizes: Sequence[float], times: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The 95 % interval of the exponent of the medians: whole rounds are drawn again, so that what they share stays shared."""
    import numpy as np

    from vitcore.bench.bootstrap import LEVEL, RESAMPLES, SEED

    data = np.asarray(times, dtype=np.float64)  # points x rounds
    drawn = np.random.default_rng(SEED).integers(0, data.shape[1], (RESAMPLES, data.shape[1]))
    medians = np.log(np.median(data[:, drawn], axis=2))  # points x resamples
    low, high = np.quantile(np.polyfit(np.log(sizes), medians, 1)[0], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def in_turn(steps: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each, round by round, in balanced orders."""
    found: list[list[float]] = [[] for _ in steps]
    orders = balanced(len(steps))
    for done in range(rounds):
        for i in orders[done % len(orders)]:
            start = time.perf_counter()
            steps[i]()
            found[i].append(time.perf_counter() - start)
    return found


def main(argv: Sequence[str]) -> int:
    """Measure, print."""
    asked = arguments().parse_args(argv)
    axes = {"tokens": asked.sides, "width": asked.widths, "depth": asked.depths, "batch": asked.batches}
    chosen = asked.axes.split(",")
    for axis in chosen:
        if axis not in (*axes, "accumulation"):
            raise VitcoreError(f"--axes {axis!r} is no axis; choose from {', '.join(axes)}, accumulation")
        if axis in axes and len(set(axes[axis].split(","))) < LEAST_POINTS:
            raise VitcoreError(
                f"{axis}: {axes[axis]} are fewer than {LEAST_POINTS} points, which make no exponent; give more"
            )
    if asked.threads:
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)  # before torch is imported
    job = Workload(asked.model, asked.img_size, asked.batch, asked.precision, classes=100)
    said: dict[str, Any] = {"model": asked.model, "precision": asked.precision, "backend": asked.backend, "axes": {}}
    for axis in chosen:
        if axis in axes:
            found = _axis(points(job, axis, [int(v) for v in axes[axis].split(",")]), asked.backend, asked.rounds)
            said["axes"][axis] = found
            print(show(axis, found))
        else:
            said["accumulation"] = _accumulation(job, asked.backend, asked.rounds)
            print(_accumulated(said["accumulation"]))
    if asked.file:
        asked.file.write_text(json.dumps(said, indent=1))
    return 0


def _axis(jobs: Sequence[tuple[int, Workload]], backend: str, rounds: int) -> dict[str, Any]:
    from vitcore.plan import make_plan

    plans = [make_plan(job.config(backend)) for _, job in jobs]
    from benchmarks.ours import OurLoop

    loops = [OurLoop(job, plan) for (_, job), plan in zip(jobs, plans)]

    def timed(loop: OurLoop) -> Callable[[], None]:
        def step() -> None:
            loop.step()
            loop.exe.rt.wait()

        return step

    steps = [timed(loop) for loop in loops]
    for step in steps:
        step(), step()
    times = in_turn(steps, rounds)
    for loop in loops:
        loop.close()
    return fitted([size for size, _ in jobs], [job.operations for _, job in jobs], times)


def fitted(sizes: Sequence[int], operations: Sequence[int], times: list[list[float]]) -> dict[str, Any]:
    """The exponents of time and of arithmetic."""
    medians = [statistics.median(t) for t in times]
    low, high = exponent_interval(sizes, times)
    return {
        "sizes": list(sizes), "operations": list(operations), "times": times, "medians": medians,
        "exponent": exponent(sizes, medians), "low": low, "high": high, "arithmetic": exponent(sizes, operations),
    }  # fmt: skip


def show(axis: str, found: dict[str, Any]) -> str:
    """One axis, for people."""
    places = ", ".join(f"{size}: {t * 1e3:.4g} ms" for size, t in zip(found["sizes"], found["medians"]))
    return (f"{axis}: exponent {found['exponent']:.2f} [{found['low']:.2f} .. {found['high']:.2f}], that of the arithmetic "
            f"{found['arithmetic']:.2f} ({places}; {len(found['times'][0])} rounds)")  # fmt: skip


def _accumulation(job: Workload, backend: str, rounds: int) -> dict[str, Any]:
    from vitcore.plan import make_plan

    jobs = (job, replace(job, batch=MICRO_STEPS * job.batch, accumulation=MICRO_STEPS))
    plans = [make_plan(j.config(backend)) for j in jobs]
    from benchmarks.ours import OurLoop
    from benchmarks.split import Clock
    from vitcore.bench.bootstrap import median_interval

    clock = Clock()
    single, whole = OurLoop(jobs[0], plans[0], wrap=clock.wrap), OurLoop(jobs[1], plans[1])
    clock.wait = single.exe.rt.wait
    parts: list[dict[str, float]] = []

    def singles() -> None:
        spent = []
        for _ in range(MICRO_STEPS):
            clock.start()
            single.step()
            spent.append(clock.stop())
        parts.append({phase: sum(one[phase] for one in spent) for phase in spent[0]})

    def accumulated() -> None:
        whole.step()
        whole.exe.rt.wait()

    with clock.marks():
        singles(), accumulated()
        parts.clear()
        all_singles, one_step = in_turn([singles, accumulated], rounds)
    for loop in (single, whole):
        loop.close()
    update = statistics.median(p[UPDATE] for p in parts) / MICRO_STEPS
    compute = [p[INPUT] + p[FORWARD] + p[BACKWARD] for p in parts]
    return {
        "compute_ratio": median_interval([(one - update) / c for one, c in zip(one_step, compute)]).as_dict(),
        "step_ratio": median_interval([one / s for one, s in zip(one_step, all_singles)]).as_dict(),
        "update_seconds": update, "compute_seconds": compute, "step_seconds": one_step,
    }  # fmt: skip


def _accumulated(found: dict[str, Any]) -> str:
    c, s = found["compute_ratio"], found["step_ratio"]
    verdict = "within" if c["low"] <= 1.01 else "above"
    compute, steps = (f"{r['median']:.3f} [{r['low']:.3f} .. {r['high']:.3f}]" for r in (c, s))
    return (f"accumulation {MICRO_STEPS}: a step without its update takes {compute} of the compute of {MICRO_STEPS} single ones, "
            f"{verdict} the bound of 1.01; whole steps {steps} of {MICRO_STEPS} ({c['rounds']} rounds)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))
