"""How long a process takes from its command to its first step: `python -m benchmarks.start JSON` prints JSON.

`seconds` counts from the start of the process, with Python, torch and the plan; `compiling` is what the first step took more
than the ones after it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any


def measure(job: Any, backend: str, threads: int) -> dict[str, float]:
    """Start such a process and return what it says."""
    from dataclasses import asdict

    asked = json.dumps({"job": asdict(job), "backend": backend, "threads": threads, "began": time.time()})
    settings = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    command = [sys.executable, "-m", "benchmarks.start", asked]
    done = subprocess.run(command, capture_output=True, text=True, env=settings)
    if done.returncode:
        raise RuntimeError(f"the process of the first step failed: {done.stderr.strip()[-2000:]}")
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return said


def main(asked: dict[str, Any]) -> dict[str, float]:
    """Take a few steps."""
    from benchmarks.workload import Workload
    from vitcore.plan import make_plan
    from vitcore.runtime.opening import set_environment

    job = Workload(**asked["job"])
    plan = make_plan(job.config(asked["backend"]))
    set_environment(plan.backend, plan.plugins)
    # From here on torch is imported.
    import torch

    from benchmarks.ours import OurLoop

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    loop, times = OurLoop(job, plan), []
    for number in range(4):
        began = time.perf_counter()
        loop.step()
        loop.exe.rt.wait()
        times.append(time.perf_counter() - began)
        if not number:
            seconds = time.time() - asked["began"]
    loop.close()
    return {"seconds": seconds, "compiling": max(times[0] - statistics.median(times[1:]), 0.0)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
