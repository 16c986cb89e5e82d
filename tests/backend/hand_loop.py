"""The training loop that anyone would write in plain PyTorch, to hold the program against. Of vitcore it imports the
model and the data, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from vitcore.data.feed import Feed
from vitcore.model.init import init_parameters
from vitcore.model.loss import cross_entropy
from vitcore.model.vit import VisionTransformer, computes_narrow, parameter_names

# The slots of torch.optim by the names that a checkpoint has for them.
SLOTS = {"momentum_buffer": "momentum", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}


@dataclass
class Trained:
    """What came out: logged losses, gradient norms before clipping, parameters and optimizer slots by name."""

    losses: list[float]
    params: dict[str, Tensor]
    slots: dict[str, dict[str, Tensor]]
    steps: float


def rate(step: int, *, base: float, warmup: int, total: int) -> float:
    """Linear warm-up from 0, cosine decay to 0."""
    done = min(max((step - warmup) / (total - warmup), 0.0), 1.0)
    return base * (0.5 * (1 + math.cos(math.pi * done))) * min(1.0, step / warmup)


def hand_loop(
    model: VisionTransformer,
    feed: Feed,
    *,
    seed: int,
    optimizer: str,
    accumulation: int,
    rates: Sequence[float],
    hyper: Mapping[str, float],
    groups: Mapping[str, tuple[float, float]] | None = None,
    max_norm: float | None = None,
    bf16: bool = False,
    narrow: bool = False,
    label_smoothing: float = 0.0,
    log_every: int = 5,
) -> Trained:
    """Train. `groups`: for the end of a parameter's name, multiples of rate and weight decay; the first that fits. `bf16`:
    under autocast; `narrow`: with bf16 copies of the weights, made once a step, whose gradients are added up in fp32."""
    init_parameters(model, torch.Generator().manual_seed(seed))
    named = dict(model.named_parameters())
    params = {name: named[name] for name in parameter_names(model)}
    groups = groups or {"": (1.0, 1.0)}
    split: dict[str, list[Tensor]] = {end: [] for end in groups}
    # Sums over micro-batches are in one buffer, so the optimizer is given whole lines of the processor's vectors: what is left
    # over at the end of a tensor torch rounds otherwise. Gradients of one micro-batch stay tensors by themselves.
    line = 16 if accumulation > 1 else 1
    lines = {name: _whole_lines(p, line) for name, p in params.items()}
    for name, p in lines.items():
        split[next(end for end in groups if name.endswith(end))].append(p)
    ours = [{"params": ps, "weight_decay": hyper["weight_decay"] * groups[end][1]} for end, ps in split.items()]
    opt = _optimizer(optimizer, ours, hyper)
    model.train()
    losses: list[float] = []
    total, count, cursor = torch.zeros(()), 0, 0
    for step, lr in enumerate(rates):
        for group, (times, _) in zip(opt.param_groups, groups.values(), strict=True):
            group["lr"] = lr * times
        used = {
            n: p.detach().to(torch.bfloat16 if narrow and computes_narrow(n) else p.dtype) for n, p in params.items()
        }
        used = {n: p.requires_grad_() for n, p in used.items()} if narrow else params
        for _ in range(accumulation):
            batch, cursor = feed.next_train(cursor)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                # The class token alone is read, of the last block as of the head.
                logits = functional_call(model, used, (batch.images,), {"reads": "pooled"})
                loss = cross_entropy(logits, batch.labels, batch.weight, label_smoothing)
            for p, g in zip(params.values(), torch.autograd.grad(loss, [*used.values()]), strict=True):
                p.grad = g.float() / accumulation + (0.0 if p.grad is None else p.grad)
            total, count = total + loss.detach(), count + 1
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), max_norm)
        for name, p in params.items():
            lines[name].grad, p.grad = _whole_lines(p.grad, line), None
        opt.step()
        for name, p in params.items():
            p.data.copy_(_shaped(lines[name], p))
        if (step + 1) % log_every == 0:
            losses.append(total.item() / count)
            total, count = torch.zeros(()), 0
    state = {name: opt.state[p] for name, p in lines.items()}
    slots = {
        ours: {n: _shaped(s[theirs], params[n]) for n, s in state.items()}
        for theirs, ours in SLOTS.items()
        if theirs in state["head.bias"]
    }
    steps = float(state["head.bias"].get("step", 0.0))
    return Trained(losses, {n: p.detach() for n, p in params.items()}, slots, steps)


def _whole_lines(t: Tensor | None, line: int) -> Tensor:
    """A copy in one dimension with zeros up to the next multiple of `line`."""
    assert t is not None
    return F.pad(t.detach().flatten(), (0, -t.numel() % line)).requires_grad_(t.requires_grad)


def _shaped(line: Tensor, like: Tensor) -> Tensor:
    return line.detach()[: like.numel()].view_as(like)


def _optimizer(kind: str, groups: list[dict[str, Any]], hyper: Mapping[str, float]) -> torch.optim.Optimizer:
    if kind == "sgdm":
        return torch.optim.SGD(groups, lr=0.0, momentum=hyper["momentum"], fused=True)
    return torch.optim.AdamW(groups, lr=0.0, betas=(hyper["beta1"], hyper["beta2"]), eps=hyper["eps"], fused=True)
