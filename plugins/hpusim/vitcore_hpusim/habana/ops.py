"""The fused ops that the stand-in's classes record, one op a call as on the card; the formulas are those that the vendor's
documentation and tests imply, written anew."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_library = torch.library.Library("hpusim", "DEF")
_library.define("sgd(Tensor[] grads, Tensor(a!)[] weights, Tensor lr, float weight_decay) -> ()")
_library.define(
    "sgd_momentum(Tensor[] grads, Tensor(a!)[] weights, Tensor(b!)[] momenta, Tensor lr, Tensor momentum, float weight_decay, "
    "float dampening, bool nesterov) -> ()"
)
_library.define(
    "adamw(Tensor[] grads, Tensor(a!)[] weights, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor neg_step, float beta1, "
    "float beta2, float eps, Scalar decay) -> ()"
)
_library.define("clip_norm(Tensor(a!)[] grads, Tensor max_norm) -> Tensor")
_library.define("sdpa(Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor)")
_library.define(
    "sdpa_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor probabilities, float scale) -> (Tensor, Tensor, Tensor)"
)


def _sgd(grads: list[Tensor], weights: list[Tensor], lr: Tensor, weight_decay: float) -> None:
    for g, w in zip(grads, weights):
        w.sub_(lr * (g + weight_decay * w))


def _sgd_momentum(
    grads: list[Tensor], weights: list[Tensor], momenta: list[Tensor], lr: Tensor, momentum: Tensor, weight_decay: float,
    dampening: float, nesterov: bool,
) -> None:  # fmt: skip
    for g, w, m in zip(grads, weights, momenta):
        g = g + weight_decay * w
        m.mul_(momentum).add_(g, alpha=1 - dampening)
        w.sub_(lr * (g + momentum * m if nesterov else m))


def _adamw(
    grads: list[Tensor], weights: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor], neg_step: Tensor, beta1: float,
    beta2: float, eps: float, decay: float,
) -> None:  # fmt: skip
    for g, w, m, v in zip(grads, weights, exp_avgs, exp_avg_sqs):
        w.mul_(decay)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        w.add_(neg_step * m / (v.sqrt() + eps))


def _clip_norm(grads: list[Tensor], max_norm: Tensor) -> Tensor:
    total = torch.stack([g.float().norm() for g in grads]).norm().reshape(1)
    factor = (max_norm / (total + 1e-6)).clamp(max=1.0)
    for g in grads:
        g.mul_(factor.to(g.dtype))
    return total


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    probabilities = torch.softmax((q * scale) @ k.transpose(-2, -1), -1, dtype=torch.float32)
    return probabilities.to(v.dtype) @ v, probabilities


def _sdpa_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, probabilities: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    of_v = probabilities.to(v.dtype).transpose(-2, -1) @ grad
    of_probabilities = (grad @ v.transpose(-2, -1)).float()
    inner = (of_probabilities * probabilities).sum(-1, keepdim=True)
    of_scores = (probabilities * (of_probabilities - inner)).to(q.dtype)
    return (of_scores @ k) * scale, of_scores.transpose(-2, -1) @ (q * scale), of_v


_BODIES: dict[str, Any] = {"sgd": _sgd, "sgd_momentum": _sgd_momentum, "adamw": _adamw, "clip_norm": _clip_norm, "sdpa": _sdpa,
                           "sdpa_backward": _sdpa_backward}  # fmt: skip
for _name, _body in _BODIES.items():
    _library.impl(_name, _body, "CPU")
# Shapes of the results, for noting an op without running it.
_library.impl("clip_norm", lambda grads, max_norm: max_norm.new_empty(1), "Meta")
_library.impl(
    "sdpa",
    lambda q, k, v, scale: (
        q.new_empty(*q.shape[:-1], v.shape[-1]),
        q.new_empty(*q.shape[:-1], k.shape[-2], dtype=torch.float32),
    ),
    "Meta",
)
_library.impl(
    "sdpa_backward",
    lambda grad, q, k, v, probabilities, scale: (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)),
    "Meta",
)
ops = torch.ops.hpusim
