"""Each training rule, optimizer and augmentation for 8 steps on lazysim and on the reference: losses, and counts by step."""

import json

from vitcore.testing.worker import opened

lazy = opened("lazysim", 0)

from vitcore.backend import World  # noqa: E402
from vitcore.data.augment import Augment  # noqa: E402
from vitcore.data.datasets import open_dataset  # noqa: E402
from vitcore.data.feed import Feed  # noqa: E402
from vitcore.doctor.flushes import predicted  # noqa: E402
from vitcore.groups import parameter_groups  # noqa: E402
from vitcore.model.vit import build_model  # noqa: E402
from vitcore.rules import StepSpec  # noqa: E402
from vitcore.runtime.executable import Executable  # noqa: E402
from vitcore.testing.problem import reference  # noqa: E402

STEPS, SIDE = 8, 32
MIXED = Augment(flip=True, erase=0.5, mixup=0.8, cutmix=1.0)
PLAIN = {"freeze": None, "undecayed": None, "layer_decay": 1.0, "depth": 0}
CASES = {
    "average": ({"optimizer": "adamw", "ema": True}, {}, None),
    "ascent": ({"optimizer": "sgdm", "sam": True, "accumulation": 2}, {}, None),
    "augmented": ({"optimizer": "sgdm", "augment": ("flip", "erase", "mix")}, {}, MIXED),
    "sigmoid": ({"optimizer": "sgdm", "loss": "sigmoid", "label_smoothing": 0.1}, {}, None),
    "drop path": ({"optimizer": "sgdm"}, {"drop_path": 0.3}, None),
    "patch dropout": ({"optimizer": "sgdm", "patch_dropout": 0.25}, {}, Augment(patch_dropout=0.25)),
    "lamb": ({"optimizer": "lamb"}, {}, None),
    "lion": ({"optimizer": "lion"}, {}, None),
    "muon": ({"optimizer": "muon", "groups": parameter_groups("muon", **PLAIN)}, {}, None),
    "frozen": ({"optimizer": "adamw", "groups": parameter_groups("adamw", **{**PLAIN, "freeze": "^patch_embed"})}, {}, None),
}  # fmt: skip


def hyper(step):
    # No two of one value: torch's lazy device takes equal scalars for one input, and compiles another graph.
    return {"lr": 0.003 * (1 - step / 40), "weight_decay": 0.0137, "momentum": 0.87, "max_norm": 1.3, "beta1": 0.91,
            "beta2": 0.97, "eps": 1.1e-8, "ema_keep": 0.79, "rho": 0.051}  # fmt: skip


def run(of, spec, rates, augment):
    data = open_dataset("synthetic", img_size=SIDE, channels=3, train_size=64, eval_size=8)
    model = build_model("ViT-Ti_16", SIDE, 10, depth=2, **rates)
    feed = Feed(data, seed=0, micro_batch=4, accumulation=spec.accumulation, eval_batch=4, augment=augment, tokens=4)
    exe = Executable(of.lowered(spec), of.backend, of.kernels, model, feed, World(), guard=False)
    state, losses, counts = exe.init(0), [], []
    for step in range(STEPS):
        before = exe.stats()
        state = exe.step(state, hyper(step))
        after = exe.stats()
        counts.append([getattr(after, n) - getattr(before, n) for n in ("flushes", "compiles", "fallbacks")])
        state, report = exe.log(exe.eval(state, 1))
        losses.append([report["loss"] / report["loss_n"], report["eval_loss"]])
    exe.close()
    return losses, counts, predicted(exe.module["train"].ops)


said = {}
for name, (fields, rates, augment) in CASES.items():
    spec = StepSpec(name="rule", **fields)
    losses, counts, flushes = run(lazy, spec, rates, augment)
    expected, *_ = run(reference(lazy), spec, rates, augment)
    said[name] = {"losses": losses, "reference": expected, "counts": counts, "predicted": flushes}
print(json.dumps(said))
