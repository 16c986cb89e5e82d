"""A small training on any device, and its parameters after some steps, as every test here compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from vitcore.config import Config
from vitcore.data.batch import Batch
from vitcore.model.vit import build_model
from vitcore.plan import make_plan
from vitcore.plugins import load_plugins
from vitcore.runtime.executable import Executable
from vitcore.runtime.opening import open_backend

SIDE, ROWS = 32, 8


class Feed:
    """Other pictures in every micro-batch, the same in every run."""

    micro_batch = eval_batch = ROWS
    global_batch = ROWS
    waited = 0.0

    def _at(self, cursor: int) -> Batch:
        g = torch.Generator().manual_seed(cursor)
        images = torch.randint(0, 256, (ROWS, 3, SIDE, SIDE), generator=g, dtype=torch.uint8)
        labels = torch.randint(0, 10, (ROWS,), generator=g)
        return Batch(images, labels, torch.ones(ROWS), torch.arange(cursor, cursor + ROWS))

    def next_train(self, cursor: int) -> tuple[Batch, int]:
        return self._at(cursor), cursor + ROWS

    next_eval = next_train

    def after_train(self, cursor: int) -> int:
        return cursor + ROWS

    def close(self) -> None: ...


def built(backend: str, change: dict[str, Any] | None = None, **settings: Any) -> Executable:
    """An executable of a small model; `change` replaces fields of the backend after the lowering asked for them."""
    config = Config(
        model_type="ViT-Ti_16", img_size=SIDE, train_batch_size=ROWS, backend=backend, **{"dropout": 0.0, **settings}
    )
    plan = make_plan(config, to_run=False)
    chosen = replace(plan.backend, **(change or {}))
    open_backend(chosen, load_plugins())
    model = build_model("ViT-Ti_16", SIDE, 10, dropout=config.dropout)
    return Executable(plan.lowered, chosen, plan.kernels, model, Feed(), guard=False)  # type: ignore[arg-type]


@pytest.fixture
def trained() -> Callable[..., tuple[list[float], list[torch.Tensor]]]:
    """`trained(exe, steps)`: rates that change, a log and an evaluation in between; losses and parameters."""

    def run(exe: Executable, steps: int = 12, start: Any = None) -> tuple[list[float], list[torch.Tensor]]:
        state, losses = exe.init(3) if start is None else start, []
        for step in range(steps):
            state = exe.step(state, hyper(step))
            if step % 4 == 3:
                state, report = exe.log(state)
                losses.append(report["loss"] / report["loss_n"])
                state, report = exe.log(exe.eval(state, 1))
                losses.append(report["eval_loss"])
        exe.rt.wait()
        names = [v.ty.kind for v in exe.module.state]
        return losses, [p.detach().cpu().clone() for p in state[names.index("params")]]

    return run


def hyper(step: int) -> dict[str, float]:
    """Scalars of a step, the rate another one each time."""
    return {
        "lr": 1e-3 * (1 + step % 3), "weight_decay": 0.05, "momentum": 0.9, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8,
        "max_norm": 1.0, "ema_keep": min(0.9, (1 + step) / (10 + step)),
    }  # fmt: skip
