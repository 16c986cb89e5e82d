"""vitcore's step beside its peers', step by step in one process, with the ratio of each pair and its interval.

All train the same model from the same parameters on the same batches in memory. A round is one step of every loop and one matrix
product, in orders that are balanced over the rounds; a ratio is that of two times of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import BOUND, PEERS
from benchmarks.workload import Workload
from vitcore.cli import run
from vitcore.errors import VitcoreError

LEAST_ROUNDS = 30


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser("python -m benchmarks.peers", description=__doc__)
    p.add_argument("--backend", default="auto", help="of vitcore; peers use its device")
    p.add_argument("--model", default="ViT-S_16", help="a variant of vitcore")
    p.add_argument("--img_size", type=int, default=224, help="pixels a side")
    p.add_argument("--batch", type=int, default=8, help="pictures a step")
    p.add_argument("--classes", type=int, default=1000)
    p.add_argument("--precision", default="bf16", help="fp32, or one of vitcore's; peers then use autocast to bf16")
    p.add_argument("--optimizer", default="sgdm", choices=["sgdm", "adamw"])
    p.add_argument("--gelu", default="tanh", choices=["tanh", "exact"], help="of every model; tanh is vitcore's own")
    p.add_argument("--pixels", default="float", choices=["float", "bytes"], help="what the batches hold")
    p.add_argument("--data", default="device", choices=["device", "host"], help="where the batches wait")
    p.add_argument("--pairs", type=int, default=LEAST_ROUNDS, help="rounds that are timed")
    p.add_argument("--warmup", type=int, default=3, help="steps of each loop before")
    p.add_argument("--inner", type=int, default=1, help="steps between two waits for the device")
    p.add_argument(
        "--seconds", type=float, default=float("inf"), help="end after the last whole round within so much time"
    )
    p.add_argument("--threads", type=int, default=0, help="of torch's operators; 0: its own choice")
    p.add_argument("--gemm", type=int, default=0, help="side of the matrix product; 0: by the device")
    p.add_argument(
        "--peers", default="all", help=f"some of {', '.join([*PEERS, *BOUND])} by comma, all but the last, or none"
    )
    p.add_argument("--compiled", nargs="?", const="yes", default="no", choices=["no", "yes", "both"],
                   help="peers by torch.compile instead of eager, or both")  # fmt: skip
    p.add_argument("--vitcore", action="append", metavar="NAME=FLAGS",
                   help="a variant: flags of vitcore train, as 'exact=--disable_kernel products'; may be repeated")  # fmt: skip
    p.add_argument("--json", dest="file", type=Path, help="write times and results here")
    return p


def variants(given: Sequence[str]) -> dict[str, list[str]]:
    """Flags by the variant's name."""
    found: dict[str, list[str]] = {}
    for one in given:
        name, equals, flags = one.partition("=")
        if not equals or not name or name in found or name in (*PEERS, *BOUND):
            raise VitcoreError(
                f"--vitcore {one!r} is no variant; write NAME=FLAGS, each name once and none that a peer has"
            )
        found[name] = shlex.split(flags)
    return found


def main(argv: Sequence[str]) -> int:
    """Measure, print the table."""
    asked = arguments().parse_args(argv)
    job = Workload(asked.model, asked.img_size, asked.batch, asked.precision, asked.classes, asked.optimizer, gelu=asked.gelu,
                   pixels=asked.pixels, place=asked.data)  # fmt: skip
    if min(asked.pairs, asked.warmup, asked.inner) < 1:
        raise VitcoreError("--pairs, --warmup and --inner count from 1; raise the one that is below")
    flags = variants(asked.vitcore or ["vitcore="])
    if asked.threads:
        # Before torch is imported, and so for what a plan measures too.
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler that counts bytes tells of itself
    plans = _plans(job, asked.backend, flags)
    from vitcore.runtime.opening import set_environment

    first = next(iter(plans.values()))
    set_environment(first.backend, first.plugins)
    # From here on torch is imported.
    import torch

    from benchmarks.ours import open_once

    open_once(first)
    if asked.threads:
        torch.set_num_threads(asked.threads)
    said = _measure(asked, job, plans)
    title = (f"{job.model} at {job.img_size} px, batch {job.batch}, {job.precision}, {job.optimizer}, {said['rounds']} rounds; "
             f"{said['device']}, torch {said['torch']}, {said['threads']} threads")  # fmt: skip
    from benchmarks.peers.table import show

    print(show(title, said))
    if said["rounds"] < LEAST_ROUNDS:
        print(f"{said['rounds']} rounds are few: intervals are to be trusted from {LEAST_ROUNDS} on")
    if asked.file:
        asked.file.write_text(json.dumps(said, indent=1))
    return 0


def _plans(job: Workload, backend: str, flags: dict[str, list[str]]) -> dict[str, Any]:
    from dataclasses import replace

    from vitcore.plan import make_plan

    plans: dict[str, Any] = {}
    for name, more in flags.items():
        config = job.config(backend)
        if more:
            from vitcore.commandline import parse  # needs tyro
            from vitcore.config import Config

            config = parse(Config, more, "--vitcore", "flags of vitcore train", default=config)
        plans[name] = make_plan(replace(config, backend=backend))
    return plans


def _measure(asked: Any, job: Workload, plans: dict[str, Any]) -> dict[str, Any]:
    import torch

    from benchmarks.device import describe
    from benchmarks.ours import OurLoop
    from benchmarks.peers.loops import Given, Loop, builders
    from benchmarks.peers.rounds import build_all, last_losses, run_rounds
    from benchmarks.peers.table import facts
    from benchmarks.rate import Product
    from benchmarks.workload import batches, weights
    from vitcore.backend import resolve
    from vitcore.weights.write import write

    names = {"all": list(PEERS), "none": []}.get(asked.peers, asked.peers.split(","))
    peers = builders(names, {"no": [False], "yes": [True], "both": [False, True]}[asked.compiled])
    backend = next(iter(plans.values())).backend
    device, wait = torch.device(backend.device), resolve(backend.wait) if backend.wait else lambda: None
    model, held = weights(job), batches(job, device, pinned=backend.pinned)
    builds: dict[str, Callable[[], Loop]] = {
        name: lambda plan=plan: OurLoop(job, plan, model=model, held=held)  # type: ignore[misc]
        for name, plan in plans.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        for to, where in (("timm", "timm"), ("huggingface", "hf")) if peers else ():
            write(model, to, Path(folder) / where)
        for name, build in peers.items():
            given = Given(job, device, [(b.images, b.labels) for b in held], Path(folder), name.endswith("-compiled"))
            builds[name] = lambda build=build, given=given: build(given)  # type: ignore[misc]
        loops, found = build_all(builds, device, wait, asked.warmup)
    product = Product(backend, job.precision, asked.gemm)
    rounds = run_rounds(loops, found, product, wait, rounds=asked.pairs, inner=asked.inner, seconds=asked.seconds)
    last_losses(loops, found)
    said = facts(job, found, list(plans), product.operations)
    for loop in loops:
        loop.close()
    return {
        "model": job.model, "img_size": job.img_size, "batch": job.batch, "precision": job.precision,
        "optimizer": job.optimizer, "backend": backend.title, "rounds": rounds, "inner": asked.inner,
        "fingerprints": _fingerprints(loops), **describe(device), **said, "operations": job.operations,
        "platform": platform.platform(), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def _fingerprints(loops: Sequence[Any]) -> dict[str, str]:
    return {loop.name: loop.exe.fingerprint for loop in loops if hasattr(loop, "exe")}


if __name__ == "__main__":
    sys.exit(run(main))
