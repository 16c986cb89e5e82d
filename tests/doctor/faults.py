"""Mistakes that people make, each with the line that is to be found: a name, and what plants it in a subject."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from vitcore.api import kernel
from vitcore.data.feed import Feed
from vitcore.doctor.examination import examine_executable
from vitcore.doctor.report import Report
from vitcore.runtime.executable import Executable
from vitcore.testing.problem import Subject, hyper


def read_item(forward: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return forward(x * (1.0 + 0.0 * x.mean().item()), *rest)  # planted: item


def branch(forward: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    if x.sum() > 0:  # planted: branch
        x = x * 1.5
    return forward(x, *rest)


_round = itertools.count(1)


def changing_number(forward: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    x = F.layer_norm(x, x.shape[-1:], eps=1e-5 * next(_round))  # planted: number
    return forward(x, *rest)


def fall_back(forward: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return forward(x / torch.linalg.vector_norm(x), *rest)  # planted: fallback


class Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:
        return g * (1 if g.abs().max().item() < 1e9 else 0)  # planted: backward


def read_backwards(forward: Any, x: torch.Tensor, *rest: Any) -> torch.Tensor:
    return forward(Backwards.apply(x), *rest)


@kernel("grads.clip")
def stock_clip(rt: Any, grads: Any, hyper: Any) -> Any:
    """What torch's users write."""
    for p, g in zip(rt.own_params(), grads):
        p.grad = g
    norm = torch.nn.utils.clip_grad_norm_(rt.own_params(), hyper["max_norm"])  # planted: clip
    for p in rt.own_params():
        p.grad = None
    return grads, norm


@kernel("opt.update")
def flushes_and_says_nothing(rt: Any, *operands: Any) -> Any:
    """As a vendor's optimizer."""
    out = rt.opt_update__reference(*operands)
    rt.mark()  # planted: flush
    return out


@kernel("opt.update")
def makes_a_slot_late(rt: Any, params: Any, state: Any, grads: Any, hyper: Any, ok: Any) -> Any:
    """As stock optimizers: state appears at the first update."""
    rt.late = getattr(rt, "late", None)
    with torch.no_grad():
        rt.late = grads[0] * 1 if rt.late is None else rt.late * 2 + grads[0]
        params[0].add_(rt.late, alpha=0)
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@kernel("health.check")
def raises(rt: Any, metrics: Any, value: Any) -> Any:
    """As one that is not done."""
    raise NotImplementedError("to be written")  # planted: raises


class Ragged(Feed):
    """A feed whose every third micro-batch is short, as the last of an epoch that is not dropped."""

    def __init__(self, feed: Feed) -> None:
        self.__dict__.update(feed.__dict__)
        self._short = itertools.count(1)

    def next_train(self, cursor: int) -> Any:  # planted: ragged
        """As the feed's, but for the rows left out."""
        batch, following = super().next_train(cursor)
        return (type(batch)(*(t[:5] for t in batch[:4])) if next(self._short) % 3 == 0 else batch), following


def _in_model(broken: Callable[..., torch.Tensor]) -> Callable[[Executable], None]:
    def plant(exe: Executable) -> None:
        block = exe.rt.model.blocks[1]
        block.forward = functools.partial(broken, block.forward)  # type: ignore[method-assign]

    return plant


def _ragged(exe: Executable) -> None:
    assert exe.rt.feed is not None
    exe.rt.feed = Ragged(exe.rt.feed)


MODELS = {
    "item": read_item,
    "branch": branch,
    "number": changing_number,
    "fallback": fall_back,
    "backward": read_backwards,
}
KERNELS = {"clip": stock_clip, "flush": flushes_and_says_nothing, "late": makes_a_slot_late, "raises": raises}
NAMES = ("none", *MODELS, *KERNELS, "ragged")


def planted(subject: Subject, name: str, steps: int = 3) -> Report:
    """The report of the conformance problem with one mistake in it."""
    if name in KERNELS:
        subject = replace(subject, kernels=(KERNELS[name], *subject.kernels))
    exe = subject.open(subject.spec("sgdm", 1))
    if name in MODELS:
        _in_model(MODELS[name])(exe)
    elif name == "ragged":
        _ragged(exe)
    try:
        return examine_executable(exe, lambda: subject.start(exe), hyper, steps)
    finally:
        exe.close()
