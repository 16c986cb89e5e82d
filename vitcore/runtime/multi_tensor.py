"""Kernels made of torch's multi-tensor functions, for backends whose device has them. Nothing claims them by itself.

Where the backend keeps bundles in one buffer (`vitcore.runtime.flat`) they are given that buffer, as one tensor a group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcore.runtime.flat import buffer
from vitcore.runtime.reference import grads as reference
from vitcore.runtime.reference import optim, params
from vitcore.runtime.reference.grads import CLIP_EPS, Grads, given
from vitcore.runtime.reference.optim import OptState, Params

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import BoundGroup, Runtime

# Rows of a buffer of gradients whose norms are taken one by one: a float32 sum of a few thousand squares keeps its digits,
# one of a hundred million does not.
_ROW = 4096


def scale(rt: Runtime, grads: Grads, by: float) -> Grads:
    """Every gradient times `by`, in place."""
    torch._foreach_mul_(_all(grads), by)
    return grads


def all_reduce(rt: Runtime, grads: Grads, group: str) -> Grads:
    """The mean over ranks, in the buffer in which the gradients are."""
    flat = buffer(grads)
    if flat is None:
        return reference.all_reduce_flat(rt, grads, group)
    rt.all_reduce_sum(flat)
    flat.div_(rt.world.size)
    return grads


def norm_foreach(rt: Runtime, grads: Grads) -> Tensor:
    """The global L2 norm, one norm a tensor and one over those: what torch.nn.utils.clip_grad_norm_ computes."""
    flat = buffer(grads)
    if flat is None or flat.numel() < _ROW:
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(_all(grads))))
    whole = flat.numel() // _ROW * _ROW
    rows = [torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1), torch.linalg.vector_norm(flat[whole:])[None]]
    return torch.linalg.vector_norm(torch.cat(rows))


def clip_foreach(rt: Runtime, grads: Grads, hyper: Hyper) -> tuple[Grads, Tensor]:
    """torch.nn.utils.clip_grad_norm_ in two passes over the gradients, without a host read."""
    total = norm_foreach(rt, grads)
    torch._foreach_mul_(_all(grads), torch.clamp(hyper["max_norm"] / (total + CLIP_EPS), max=1.0))
    return grads, total


def init(rt: Runtime, params: Params, kind: str) -> OptState:
    """As the reference, each slot in one buffer."""
    state: OptState = rt.joined(optim.init(rt, params, kind))
    return state


def average(rt: Runtime, values: Params) -> Params:
    """As the reference, in one buffer."""
    joined: Params = rt.joined(params.average(rt, values))
    return joined


@torch.no_grad()
def update_average(rt: Runtime, ema: Params, values: Params, hyper: Hyper, ok: Tensor) -> Params:
    """e + (1 - keep) (p - e), of the whole buffer at once and without another one; where `ok` is 0, by 0 of it."""
    average, now = buffer(ema), buffer(values)
    if average is None or now is None:
        return params.update_average(rt, ema, values, hyper, ok)
    trained = slice(rt.layout.trained)
    average[trained].lerp_(now[trained], (1 - hyper.tensor("ema_keep")) * ok)
    return ema


def torch_fused(
    rt: Runtime, params: Params, state: OptState, grads: Grads, hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """torch.optim's fused SGD and AdamW, bit for bit; the flag goes in as their `found_inf`, which skips the update."""
    return _fused(rt, params, state, grads, hyper, ok, lambda group: hyper["lr"] * group.lr)


def torch_capturable(
    rt: Runtime, params: Params, state: OptState, grads: Grads, hyper: Hyper, ok: Tensor
) -> tuple[Params, OptState]:
    """As `torch_fused`, with the learning rate on the device, so that a recorded step takes each step's own."""
    return _fused(rt, params, state, grads, hyper, ok, lambda group: hyper.tensor("lr", group.lr))


@torch.no_grad()
def _fused(
    rt: Runtime, params: Params, state: OptState, grads: Grads, hyper: Hyper, ok: Tensor,
    rate: Callable[[BoundGroup], Any],
) -> tuple[Params, OptState]:  # fmt: skip
    found_inf = 1 - ok
    adamw = "exp_avg" in state
    if adamw:
        state["step"][0].add_(ok)
    slots = ("exp_avg", "exp_avg_sq") if adamw else ("momentum",)
    for group in rt.groups:
        ps, gs, *held = _parts(rt, group, (params, grads, *(state[slot] for slot in slots)))
        lr, decay = rate(group), hyper["weight_decay"] * group.weight_decay
        if adamw:
            torch._fused_adamw_(
                ps, gs, held[0], held[1], [], [state["step"][0]] * len(ps),
                lr=lr, beta1=hyper["beta1"], beta2=hyper["beta2"], weight_decay=decay, eps=hyper["eps"],
                amsgrad=False, maximize=False, grad_scale=None, found_inf=found_inf,
            )  # fmt: skip
        else:
            torch._fused_sgd_(
                ps, gs, held[0], weight_decay=decay, momentum=hyper["momentum"], lr=lr,
                dampening=0.0, nesterov=False, maximize=False, is_first_step=False, grad_scale=None,
                found_inf=found_inf,
            )  # fmt: skip
    return params, state


def _all(grads: Grads) -> list[Tensor]:
    flat = buffer(grads)
    return given(grads) if flat is None else [flat]


def _parts(rt: Runtime, group: BoundGroup, bundles: tuple) -> list[list[Tensor]]:
    """A group's tensors of each bundle: one, where all of them are in buffers."""
    flats = [buffer(bundle) for bundle in bundles]
    if any(flat is None for flat in flats):
        return [[bundle[i] for i in group.indices] for bundle in bundles]
    return [[flat[rt.layout.spans[group.name]]] for flat in flats if flat is not None]
