"""The learning rate as a pure function of the step (google-research/vision_transformer, utils.py)."""

from __future__ import annotations

import math


def learning_rate(step: int, *, base: float, total: int, warmup: int, decay: str) -> float:
    """The rate of optimizer step `step`, counted from 0: linear warm-up from 0 times a decay to 0 at `total`.

    Step i uses lr(i), so with a warm-up the first step changes nothing, as in the reference.
    """
    done = min(max((step - warmup) / max(total - warmup, 1), 0.0), 1.0)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[decay]
    return base * factor * (min(1.0, step / warmup) if warmup else 1.0)
