"""ViT-Ti/16 for 20 steps with accumulation 2, on lazysim and on the reference: losses, and counts step by step."""

import json

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore import checkpoint  # noqa: E402
from vitcore.backend import World  # noqa: E402
from vitcore.data.datasets import open_dataset  # noqa: E402
from vitcore.data.feed import Feed  # noqa: E402
from vitcore.doctor.flushes import predicted  # noqa: E402
from vitcore.model.vit import build_model  # noqa: E402
from vitcore.runtime.executable import Executable  # noqa: E402
from vitcore.testing.problem import reference  # noqa: E402

STEPS, SIDE = 20, 32
SPEC = lazy.spec("sgdm", 2)


def program(of):
    data = open_dataset("synthetic", img_size=SIDE, channels=3, train_size=64, eval_size=13)
    feed = Feed(data, seed=0, micro_batch=4, accumulation=2, eval_batch=4)
    return Executable(
        of.lowered(SPEC), of.backend, of.kernels, build_model("ViT-Ti_16", SIDE, 10), feed, World(), guard=False
    )


def hyper(step):
    # No two of one value: torch's lazy device takes equal scalars for one input, and compiles another graph.
    return {"lr": 0.02 * (1 - step / 40), "weight_decay": 0.0137, "momentum": 0.9, "max_norm": 1.3}


def run(of):
    exe = program(of)
    state, losses, counts = exe.init(0), [], []
    for step in range(STEPS):
        before = exe.stats()
        state = exe.step(state, hyper(step))
        after = exe.stats()
        counts.append(
            (after.flushes - before.flushes, after.compiles - before.compiles, after.fallbacks - before.fallbacks)
        )
        between = exe.stats()
        if step in (7, 13):  # an evaluation and a checkpoint in between; what the first compiles is warm-up
            state = exe.eval(state, exe.rt.feed.eval_steps)
        state, report = exe.log(state)
        losses.append(report["loss"] / report["loss_n"])
        if step in (7, 13):
            checkpoint.flatten(exe.saved(state), {v.name: v.ty.kind for v in exe.module.saved}, exe.rt.names)
            now = exe.stats()
            counted = [now.compiles - between.compiles, now.fallbacks - between.fallbacks]
    exe.close()
    return losses, counts, counted, predicted(exe.module["train"].ops)


losses, counts, between, say = run(lazy)
expected, *_ = run(reference(lazy))
flushes, compiles, fallbacks = zip(*counts)
print(json.dumps({"losses": losses, "reference": expected, "predicted": say, "flushes": flushes, "compiles": compiles,
                  "fallbacks": fallbacks, "between": between}))  # fmt: skip
