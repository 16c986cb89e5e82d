"""`habana_frameworks.torch.hpex.optimizers`: where they mark, what they keep, which numbers reach the device as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import required

from vitcore_hpusim.habana.ops import ops
from vitcore_hpusim.habana.stepping import mark_if_lazy
from vitcore_hpusim.tensor import DEVICE


class FusedSGD(Optimizer):
    """hpex/optimizers/FusedSGD.py: marks once when made, and around each parameter group in `step`."""

    def __init__(
        self, params: Iterable[torch.nn.parameter.Parameter], lr: float = required, momentum: float = 0, weight_decay: float = 0,
        dampening: float = 0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "dampening": dampening}
        super().__init__(params, {**defaults, "nesterov": nesterov})
        mark_if_lazy()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; parameters without a gradient are left out."""
        loss = closure() if closure else None
        for group in self.param_groups:
            lr = torch.tensor([group["lr"]], dtype=torch.float).to(DEVICE)
            params = [p for p in group["params"] if p.grad is not None]
            grads, weights = [p.grad.data for p in params], [p.data for p in params]
            if not group["momentum"]:
                mark_if_lazy()
                ops.sgd(grads, weights, lr, group["weight_decay"])
                mark_if_lazy()
                continue
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros(p.grad.shape).to(DEVICE)
            momenta = [self.state[p]["momentum_buffer"] for p in params]
            momentum = torch.tensor(group["momentum"]).to(DEVICE)
            mark_if_lazy()
            ops.sgd_momentum(
                grads, weights, momenta, lr, momentum, group["weight_decay"], group["dampening"], group["nesterov"]
            )
            mark_if_lazy()
        return loss


class FusedAdamW(Optimizer):
    """hpex/optimizers/FusedAdamW.py: marks before each group and after the step; the count of steps is the group's, on the
    host; epsilon is added before the bias correction, which is in the step's size."""

    def __init__(
        self, params: Iterable[torch.nn.parameter.Parameter], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6, weight_decay: float = 0.0, bias_correction: bool = True, moments_dtype: Any = None,
    ) -> None:  # fmt: skip
        if moments_dtype is not None:
            raise NotImplementedError("hpusim: FusedAdamW's moments_dtype is not simulated; leave it out")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update; parameters without a gradient are left out."""
        loss = closure() if closure else None
        for group in self.param_groups:
            mark_if_lazy()
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p].update(
                        step=0, exp_avg=torch.zeros(p.shape).to(DEVICE), exp_avg_sq=torch.zeros(p.shape).to(DEVICE)
                    )
            if not params:
                continue
            beta1, beta2 = group["betas"]
            group["step"] = group.get("step", 0) + 1
            size = group["lr"]
            if group["bias_correction"]:
                size *= math.sqrt(1.0 - beta2 ** group["step"]) / (1.0 - beta1 ** group["step"])
            neg_step = torch.tensor([-size], dtype=torch.float).to(params[0].dtype).to(DEVICE)
            decay = 1.0 - group["weight_decay"] * group["lr"]
            states = [self.state[p] for p in params]
            ops.adamw([p.grad.data for p in params], [p.data for p in params], [s["exp_avg"] for s in states],
                      [s["exp_avg_sq"] for s in states], neg_step, beta1, beta2, group["eps"], decay)  # fmt: skip
        mark_if_lazy()
        return loss
