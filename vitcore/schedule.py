"""The learning rate as a pure function of the step.

Warm-up, cosine and line: google-research/vision_transformer, utils.py. `wsd`, warm-up, stable, decay: Hu et al. 2024 (MiniCPM,
arXiv 2404.06395); a line for the decay and a tenth of the steps for it: Haegele et al. 2024 (arXiv 2405.18392).
"""

from __future__ import annotations

import math


def learning_rate(step: int, *, base: float, total: int, warmup: int, decay: str, cooldown: int = 0) -> float:
    """The rate of optimizer step `step`, counted from 0: linear warm-up from 0 times a decay to 0 at `total`.

    `decay`: cosine or linear from the warm-up's end on; constant: none; wsd: linear in the last `cooldown` steps, of which 0
    means a tenth of all. Step i uses lr(i), so with a warm-up the first step changes nothing, as in the reference.
    """
    done = min(max((step - warmup) / max(total - warmup, 1), 0.0), 1.0)
    if decay == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * done))
    elif decay == "wsd":
        factor = min(max((total - step) / (cooldown or max(total // 10, 1)), 0.0), 1.0)
    else:
        factor = {"linear": 1 - done, "constant": 1.0}[decay]
    return base * factor * (min(1.0, step / warmup) if warmup else 1.0)
