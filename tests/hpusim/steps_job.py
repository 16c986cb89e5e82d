"""Training steps on the simulated card: with marks at random places, and three hundred of them with dropout."""

import json

from vitcore.testing.worker import opened

lazy = opened("hpu-lazy", 0, simulate=True)

from vitcore_hpusim.tensor import HpuTensor  # noqa: E402

from vitcore.runtime.trace import digest  # noqa: E402
from vitcore.testing.problem import hyper  # noqa: E402

card = HpuTensor.recorder


def end(marks):
    card.random_marks = marks
    before = card.counts.flushes
    exe = lazy.open(lazy.spec("adamw", 2), dropout=0.1)
    made = digest(tuple(t.cpu() for t in lazy.train(exe, 3)[0]))
    exe.close()
    card.random_marks = 0.0
    return made, card.counts.flushes - before


def mebibytes():
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


ends, flushes = zip(*(end(p) for p in (0.0, 0.02, 0.1, 0.3, 0.7)))
exe = lazy.open(lazy.spec("sgdm", 2), dropout=0.1)
state, sizes, programs = lazy.start(exe), [], []
for step in range(300):
    state = exe.step(state, {**hyper(0), "lr": 0.01 / (1 + step)})
    if step % 20 == 19:
        state, _ = exe.log(state)
    if step in (99, 299):
        sizes.append(mebibytes())
        programs.append(len(card._programs))
print(json.dumps({"ends": ends, "flushes": flushes, "mebibytes": sizes, "programs": programs}))
