"""An evaluation by class and by confidence on lazysim: its accumulators, and what it costs beside a plain one."""

import json
import re
from dataclasses import asdict, replace

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.backend import World  # noqa: E402
from vitcore.data.datasets import open_dataset  # noqa: E402
from vitcore.data.feed import Feed  # noqa: E402
from vitcore.model.vit import build_model  # noqa: E402
from vitcore.runtime.executable import Executable  # noqa: E402
from vitcore.testing.problem import reference  # noqa: E402


def program(of, details):
    data = open_dataset("digits-tune", img_size=8)
    feed = Feed(data, seed=0, micro_batch=8, eval_batch=50)
    spec = replace(of.spec("sgdm", 1), details=details)
    exe = Executable(
        of.lowered(spec), of.backend, of.kernels, build_model("ViT-digits", 8, 10), feed, World(), guard=False
    )
    state = exe.init(0)
    for lr in (0.11, 0.12, 0.13):  # no two of one value: the device takes equal scalars for one input
        state = exe.step(state, {"lr": lr, "weight_decay": 0.0137, "momentum": 0.9, "max_norm": 1.3})
    return exe, exe.log(state)[0]


def counts(exe, state):
    before = asdict(exe.stats())
    state, report = exe.log(exe.eval(state, exe.rt.feed.eval_steps))
    return state, report, {k: v - before[k] for k, v in asdict(exe.stats()).items()}


def peak():
    """KiB, at most so far. Not ru_maxrss: it begins with that of the process which started this one, and hides growth."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read())[1])


def twice(of, details):
    exe, state = program(of, details)
    state, _, _ = counts(exe, state)
    return exe, *counts(exe, state)


_, _, _, plain = twice(lazy, False)
exe, state, report, full = twice(lazy, True)
for _ in range(20):
    state, _, _ = counts(exe, state)
grown = peak()
for _ in range(60):
    state, _, _ = counts(exe, state)
grown = peak() - grown
_, _, host, _ = twice(reference(lazy), True)
print(json.dumps({"plain": plain, "full": full, "report": report, "host": host, "grown": grown}))
