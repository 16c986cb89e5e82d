"""Sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412): the gradient at the worst point nearby.

Each micro-batch climbs from the parameters along its own gradient, as far as `hyper.rho`, takes the gradient there and goes
back; the sum of those gradients makes the update. It is the paper's m-sharpness with m the images of one micro-batch of one
rank: the climb is not averaged over ranks, so other sizes of micro-batches are another training.
"""

from __future__ import annotations

from vitcore.rules.plain import batch, fed, forward, head, update
from vitcore.rules.spec import StepSpec
from vitcore.rules.state import lines


def sam(spec: StepSpec) -> str:
    """`@train` of two forwards and two backwards a micro-batch."""
    return lines(
        *head(spec),
        "  %g, %pl, %c1, %k1, %m1 = repeat %g0, %p, %c, %k, %m {n=" + str(spec.accumulation) + "}",
        "      (%ga: grads<f32 sum partial>, %pa: params<f32>, %ca: cursor, %ka: key, %ma: metrics) [",
        *batch(spec, "    %kh, %kf = rng.split %ka : key, key"),
        f"    %loss, %t = model.forward %pa, {fed(spec)}, %kf{forward(spec)} : scalar<f32>, tape",
        "    %d = model.backward %t : grads<f32 sum partial>",
        "    %q, %kept = params.ascend %pa, %d, %hyper : params<f32>, params<f32 kept>",
        "    %kb, %ks = rng.split %kh {stream=ascended} : key, key",
        f"    %near, %tn = model.forward %q, {fed(spec)}, %ks{forward(spec)} : scalar<f32>, tape",
        "    %dn = model.backward %tn : grads<f32 sum partial>",
        "    %pb = params.descend %q, %kept : params<f32>",
        "    %gb = grads.add %ga, %dn : grads<f32 sum partial>",
        "    %mb = metrics.add %ma, %loss {name=loss} : metrics",
        "    yield %gb, %pb, %cb, %kb, %mb",
        "  ]",
        *update(spec, "%pl"),
    )
