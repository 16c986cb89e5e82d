"""The plain rule: the mean gradient over all micro-batches and ranks, clipped, and one update."""

from __future__ import annotations

from vitcore.rules.spec import StepSpec
from vitcore.rules.state import lines, parameters


def plain(spec: StepSpec) -> str:
    """`@train` of one forward and one backward a micro-batch."""
    return lines(
        *head(spec),
        "  %g, %c1, %k1, %m1 = repeat %g0, %c, %k, %m {n=" + str(spec.accumulation) + "}",
        "      (%ga: grads<f32 sum partial>, %ca: cursor, %ka: key, %ma: metrics) [",
        *batch(spec, "    %kb, %kf = rng.split %ka : key, key"),
        f"    %loss, %t = model.forward %p, {fed(spec)}, %kf{forward(spec)} : scalar<f32>, tape",
        "    %d = model.backward %t : grads<f32 sum partial>",
        "    %gb = grads.add %ga, %d : grads<f32 sum partial>",
        "    %mb = metrics.add %ma, %loss {name=loss} : metrics",
        "    yield %gb, %cb, %kb, %mb",
        "  ]",
        *update(spec),
    )


def head(spec: StepSpec) -> list[str]:
    """The line that opens `@train`, and fresh gradients."""
    return [
        f"step @train({parameters(spec)}, %hyper: hyper) [",
        "  %g0 = grads.zero %p : grads<f32 sum partial>",
    ]


def batch(spec: StepSpec, split: str) -> list[str]:
    """The micro-batch at the cursor, on the device and augmented there where anything is to be done. The key is split first:
    what the host does stands before what the device does, so that augmentation and forward are one region."""
    augment = f"    %xa = data.augment %x {{do={'|'.join(spec.augment)}}} : batch<dev>"
    return [
        "    %h, %cb = data.next %ca : batch<host>, cursor",
        "    %x = data.put %h : batch<dev>",
        split,
        *([augment] if spec.augment else []),
    ]


def fed(spec: StepSpec) -> str:
    """The batch that the model sees."""
    return "%xa" if spec.augment else "%x"


def forward(spec: StepSpec) -> str:
    """The attributes of `model.forward`: which loss, and what is left out of the sequence."""
    said = {
        "label_smoothing": repr(spec.label_smoothing) if spec.label_smoothing else "",
        "loss": "" if spec.loss == "softmax" else spec.loss,
        "patch_dropout": repr(spec.patch_dropout) if spec.patch_dropout else "",
    }
    attrs = ", ".join(f"{name}={value}" for name, value in said.items() if value)
    return f" {{{attrs}}}" if attrs else ""


def update(spec: StepSpec, params: str = "%p") -> list[str]:
    """From the sum of gradients `%g` to the next state; `params` are those that the loop gives back."""
    kind, clipped = spec.optimizer, "%gc, %norm = grads.clip %gr, %hyper : grads<f32 mean synced>, scalar<f32>"
    return [
        f"  %gs = grads.scale %g {{by=1/{spec.accumulation}}} : grads<f32 mean partial>",
        "  %gr = grads.all_reduce %gs {group=dp} : grads<f32 mean synced>",
        f"  {clipped if spec.clip else '%norm = grads.norm %gr : scalar<f32>'}",
        "  %m2 = metrics.add %m1, %norm {name=grad_norm} : metrics",
        "  %m3, %ok = health.check %m2, %norm : metrics, flag",
        f"  %p1, %o1 = opt.update {params}, %o, {'%gc' if spec.clip else '%gr'}, %hyper, %ok : params<f32>, opt<{kind}>",
        "  %e1 = ema.update %e, %p1, %hyper, %ok : ema<f32>" if spec.ema else "",
        f"  return %p1, %o1, {'%e1, ' if spec.ema else ''}%c1, %k1, %m3",
        "]",
    ]
