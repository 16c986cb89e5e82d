"""What is to be measured on a GPU, in one prepared run: parts in processes of their own, each with a time, results as JSON lines.

    python -m benchmarks.gpu_session --out results --seconds 480
    python -m benchmarks.gpu_session --parts tests,peers:ViT-B_16:384:128 --out results
    python -m benchmarks.gpu_session --device cpu --tiny --out results       # the script itself, on any machine

A part that fails or takes too long is a line that says so and costs no other part. `--site FOLDER` (default `.gpu_wheels`, if
that is there) goes in front of the packages of the machine, for those that it lacks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# Jobs as MODEL:SIDE:BATCH. The tiny ones are for trying the script.
JOBS = ("ViT-B_16:384:128", "ViT-L_16:384:64", "ViT-B_16:384:256", "ViT-L_16:384:128")
TINY = ("ViT-Ti_16:32:2",)

# Ways in which a step is lowered for a device that records steps, by the name of the row.
WAYS = {"eager": "--disable_pass capture_step", "graph": "", "compiled": "--enable_kernel compiled --disable_pass capture_step",
        "compiled-graph": "--enable_kernel compiled"}  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One process: what it runs, how long it may, and the file in which its results will be."""

    name: str
    command: tuple[str, ...]
    seconds: float
    file: str = ""


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        "python -m benchmarks.gpu_session", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_session")), help="folder of the results")
    about = "machine, tests, attention, parity, remat, conformance, peers, or peers:MODEL:SIDE:BATCH for that job alone, by comma"
    p.add_argument("--parts", default="", help=f"{about}; default: all in this order")
    p.add_argument("--ways", default="graph,compiled-graph", help=f"of vitcore beside the peers: {', '.join(WAYS)}")
    p.add_argument("--peers", default="timm", help="as of benchmarks.peers; compiled ones")
    p.add_argument("--rounds", type=int, default=30, help="of each job beside the peers")
    p.add_argument("--seconds", type=float, default=480, help="for everything; what comes too late is left out by name")
    p.add_argument("--device", default="cuda", help="backend of vitcore")
    p.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the script")
    p.add_argument("--site", type=Path, default=ROOT / ".gpu_wheels", help="packages that the machine lacks")
    return p


def parts(asked: argparse.Namespace) -> list[Part]:
    """What was asked for, in order."""
    device, tiny = asked.device, asked.tiny
    py = (sys.executable, "-m")

    def own(name: str, seconds: float) -> Part:
        more = ("--tiny",) if tiny else ()
        return Part(name, (*py, "benchmarks.gpu_parts", name, "--device", device, *more), seconds)

    ways = [f"{way}={WAYS[way]}" for way in asked.ways.split(",")]
    if device == "cpu":  # which records nothing
        ways = [w for w in ways if w.startswith("eager")] or ["eager="]
        ways = [w.replace("--disable_pass capture_step", "") for w in ways]

    def peers(job: str) -> Part:
        model, side, batch = job.split(":")
        file = f"peers-{model}-{side}-{batch}.json"
        flags = [f for way in ways for f in ("--vitcore", way)]
        sizes = ("--model", model, "--img_size", side, "--batch", batch, "--gelu", "exact")
        compiled = () if tiny else ("--compiled",)
        how = ("--backend", device, "--precision", "bf16", "--peers", asked.peers, *compiled, "--inner", "2", "--seconds", "40",
               "--pairs", str(1 if tiny else asked.rounds), "--json", str(asked.out.resolve() / file))  # fmt: skip
        return Part(f"peers:{job}", (*py, "benchmarks.peers", *sizes, *how, *flags), 240, file)

    tests = ("tests/cuda",) if device == "cpu" else ("tests/device", "tests/cuda")
    known = {
        "machine": [own("machine", 60)],
        "tests": [Part("tests", (*py, "pytest", "-q", "-p", "no:cacheprovider", *tests), 240)],
        "attention": [own("attention", 60)],
        "parity": [own("parity", 120)],
        "remat": [own("remat", 90)],
        "conformance": [Part("conformance", (*py, "vitcore.conformance", "--backend", device, "--checks",
                             *(("C2",) if tiny else ("C3", "C4", "C6", "C7", "C8", "C9"))), 240)],
        "peers": [peers(job) for job in (TINY if tiny else JOBS)],
    }  # fmt: skip
    chosen = []
    for name in [n for n in asked.parts.split(",") if n] or list(known):
        if name.startswith("peers:") and name.count(":") == 3:
            chosen.append(peers(name.removeprefix("peers:")))
        elif name in known:
            chosen += known[name]
        else:
            raise SystemExit(f"--parts {name!r} is no part; choose from {', '.join(known)}, or peers:MODEL:SIDE:BATCH")
    return chosen


def run(part: Part, out: Path, site: Path, left: float) -> dict[str, Any]:
    """Run a part for as long as it and the session may; its output is in OUT/NAME.txt."""
    log = out / f"{part.name.replace(':', '-')}.txt"
    path = [str(site)] if site.is_dir() else []
    path += [str(ROOT), str(ROOT / "backends"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUNBUFFERED": "1"}
    began, limit = time.monotonic(), min(part.seconds, left)
    with log.open("w", encoding="utf-8") as to:
        child = subprocess.Popen(
            part.command, cwd=ROOT, env=env, stdout=to, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | str = child.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)  # compilers that it started too
            child.wait()
            code = f"stopped after {limit:.0f} s"
    text = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said: dict[str, Any] = {"part": part.name, "exit": code, "seconds": round(time.monotonic() - began, 1)}
    if part.file and (out / part.file).exists():
        said |= summary(json.loads((out / part.file).read_text(encoding="utf-8")))
    found = [line for line in text if line.startswith("{")]
    said |= {"results": [json.loads(line) for line in found]} if found else {}
    if code != 0 or not (found or part.file):
        said["last"] = text[-8 if code != 0 else -1 :]
    return said


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a table of peers that fit a line."""
    return {
        "device": found["device"], "torch": found["torch"], "rounds": found["rounds"],
        "matrix_tflops": round(found["gemm_operations_per_second"] / 1e12, 1),
        "loops": {r["name"]: {"images/s": round(r["images_per_second"], 1), "mfu": round(r["mfu"], 4),
                              "peak_gib": round(r["peak_bytes"] / 2**30, 2), "first_s": round(r["first_step_seconds"], 1)}
                  for r in found["loops"]},
        "ratios": {f"{r['of']}/{r['to']}": [round(r[k], 3) for k in ("median", "low", "high")] for r in found["ratios"]},
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; exit code 1 where one of them failed or had no time."""
    asked = arguments().parse_args(argv)
    asked.out.mkdir(parents=True, exist_ok=True)
    began, failed = time.monotonic(), False
    with (asked.out / "session.jsonl").open("a", encoding="utf-8") as to:
        for part in parts(asked):
            left = asked.seconds - (time.monotonic() - began)
            said = (
                run(part, asked.out, asked.site, left) if left > 5 else {"part": part.name, "exit": "no time was left"}
            )
            failed = failed or said["exit"] != 0
            line = json.dumps(said)
            print(line, flush=True)
            to.write(line + "\n")
            to.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
