"""Faulty backends, one mistake each. Each says which check must catch it, and which words must name it.

Those on the host are the reference kernels with one of them replaced; those of `lazysim` are that plugin with one mistake.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import vitcore_lazysim

from vitcore.api import Backend, Kernel, hookimpl, lowering_pass

HOST = Backend(name="host", device="cpu", collective="gloo", precisions=("fp32", "bf16"))


@dataclass(frozen=True)
class Mutant:
    """A mistake: what it is, the check that catches it, and words of the message."""

    name: str
    what: str
    check: str
    words: tuple[str, ...]
    backend: Backend
    kernels: tuple[Kernel, ...] = ()
    passes: tuple[Any, ...] = ()


MUTANTS: dict[str, Mutant] = {}


def mutant(
    op: str,
    what: str,
    check: str,
    *words: str,
    kind: str | None = None,
    lazy: bool = False,
    flushes: Any = (0, 0, 0),
    variant: str = "",
    **backend: Any,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a kernel as a backend of its own; the function's name is the mutant's."""

    def enter(fn: Callable[..., Any]) -> Callable[..., Any]:
        name = fn.__name__
        when = None if kind is None else lambda op, world: op.args[1].ty.has(kind)
        made = Kernel(op, name, fn, when, flushes, variant)
        add(name, what, check, *(words or (op,)), kernels=(made,), lazy=lazy, **backend)
        return fn

    return enter


def add(name: str, what: str, check: str, *words: str, kernels: tuple[Kernel, ...] = (), passes: Any = (), lazy: bool = False,
        **backend: Any) -> None:  # fmt: skip
    (base,) = vitcore_lazysim.vitcore_backends() if lazy else (HOST,)
    kernels = (*kernels, *vitcore_lazysim.vitcore_kernels("lazysim")) if lazy else kernels
    MUTANTS[name] = Mutant(
        name, what, check, words, replace(base, name=f"mutant-{name}", **backend), kernels, tuple(passes)
    )


@hookimpl
def vitcore_backends() -> list[Backend]:
    return [*(m.backend for m in MUTANTS.values()), *(backend for backend, _ in SOUND.values())]


@hookimpl
def vitcore_kernels(backend: str) -> list[Kernel]:
    if backend in SOUND:
        return [*SOUND[backend][1]]
    found = MUTANTS.get(backend.removeprefix("mutant-"))
    if found is None or not backend.startswith("mutant-"):
        return []
    if found.name == "imports_torch":
        import torch  # noqa: F401
    return [*found.kernels]


@hookimpl
def vitcore_passes(backend: str) -> list[Any]:
    found = MUTANTS.get(backend.removeprefix("mutant-"))
    return [*found.passes] if found is not None and backend.startswith("mutant-") else []


# ---- the update ----


def _each(rt: Any, params: Any, hyper: Any) -> Any:
    for group in rt.groups:
        for i in group.indices:
            yield i, hyper.tensor("lr", group.lr), hyper.tensor("weight_decay", group.weight_decay)


def _no_grad(fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import torch

        with torch.no_grad():
            return fn(*args, **kwargs)

    wrapped.__name__ = fn.__name__
    return wrapped


@mutant("opt.update", "momentum is applied twice", "C3", "opt.update", kind="sgdm")
@_no_grad
def momentum_twice(rt, params, state, grads, hyper, ok):
    for m in state["momentum"]:
        m.mul_(hyper.tensor("momentum"))
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@mutant(
    "opt.update", "every parameter is decayed, those of the group without decay too", "C3", "opt.update", kind="sgdm"
)
@_no_grad
def decay_for_all(rt, params, state, grads, hyper, ok):
    for g, p in zip(grads, params):
        g.add_(p * hyper["weight_decay"] * ok)
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@mutant("opt.update", "Adam's decay is added to the gradient", "C3", "opt.update", kind="adamw")
@_no_grad
def decay_coupled(rt, params, state, grads, hyper, ok):
    for i, _, decay in _each(rt, params, hyper):
        grads[i].add_(params[i] * decay)
    saved, hyper.values = hyper.values, {**hyper.values, "weight_decay": 0.0}
    hyper._tensors.clear()
    out = rt.opt_update__reference(params, state, grads, hyper, ok)
    hyper.values = saved
    return out


def _is_adamw(op: Any, world: Any) -> bool:
    return op.args[1].ty.has("adamw")


def _adam(rt, params, state, grads, hyper, ok, denominator, one=None):
    if float(ok) == 0:
        return params, state
    state["step"][0].add_(1)
    t = float(state["step"][0])
    for i, lr, decay in _each(rt, params, hyper):
        m, v, g, p = state["exp_avg"][i], state["exp_avg_sq"][i], grads[i], params[i]
        m.mul_(hyper["beta1"]).add_(g * (1 - hyper["beta1"]))
        v.mul_(hyper["beta2"]).add_(g * g * (1 - hyper["beta2"]))
        first, second = 1 - hyper["beta1"] ** t, 1 - hyper["beta2"] ** t
        p.mul_(1 - lr * decay).sub_(lr * (m / (first if one is None else one)) / denominator(v, second, hyper["eps"]))
    return params, state


@mutant("opt.update", "Adam's epsilon before the bias correction, undeclared", "C3", "opt.update", kind="adamw")
@_no_grad
def eps_before_correction(rt, params, state, grads, hyper, ok):
    return _adam(rt, params, state, grads, hyper, ok, lambda v, c, eps: (v.sqrt() + eps) / c**0.5)


@mutant("opt.update", "Adam's epsilon under the root", "C3", "opt.update", kind="adamw")
@_no_grad
def eps_under_root(rt, params, state, grads, hyper, ok):
    return _adam(rt, params, state, grads, hyper, ok, lambda v, c, eps: (v / c + eps).sqrt())


@mutant("opt.update", "Adam without bias correction", "C3", "opt.update", kind="adamw")
@_no_grad
def no_bias_correction(rt, params, state, grads, hyper, ok):
    return _adam(rt, params, state, grads, hyper, ok, lambda v, c, eps: v.sqrt() + eps, one=1.0)


@mutant("opt.update", "the learning rate of the first step for ever", "C3", "opt.update")
def rate_of_the_first_step(rt, params, state, grads, hyper, ok):
    rt.first_rate = getattr(rt, "first_rate", hyper.values["lr"])
    hyper.values = {**hyper.values, "lr": rt.first_rate}
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@mutant("opt.update", "an update that is to be skipped is made", "C3", "opt.update")
def flag_ignored(rt, params, state, grads, hyper, ok):
    return rt.opt_update__reference(params, state, grads, hyper, ok * 0 + 1)


@mutant("opt.update", "one learning rate for all groups", "C3", "opt.update", kind="sgdm")
@_no_grad
def rate_of_groups_ignored(rt, params, state, grads, hyper, ok):
    for i, _, decay in _each(rt, params, hyper):
        state["momentum"][i].mul_(hyper.tensor("momentum") * ok + (1 - ok)).add_(
            (grads[i] + params[i] * decay).nan_to_num() * ok
        )
        params[i].sub_(state["momentum"][i] * hyper.tensor("lr") * ok)
    return params, state


# ---- gradients ----


@mutant("grads.scale", "gradients are averaged twice", "C3", "grads.scale")
def averaged_twice(rt, grads, by):
    return rt.grads_scale__reference(rt.grads_scale__reference(grads, by), by)


@mutant("grads.scale", "gradients are not averaged", "C3", "grads.scale")
def not_averaged(rt, grads, by):
    return grads


@mutant("grads.scale", "gradients are averaged over one micro-batch too many", "C3", "grads.scale")
def averaged_over_too_many(rt, grads, by):
    return rt.grads_scale__reference(grads, 1 / (1 / by + (by != 1)))


@mutant("grads.clip", "the factor of clipping may be above 1", "C3", "grads.clip")
def clip_enlarges(rt, grads, hyper):
    norm = rt.grads_norm__reference(grads)
    return [g.mul_(hyper.tensor("max_norm") / (norm + 1e-6)) for g in grads], norm


@mutant("grads.clip", "each gradient is clipped by its own norm", "C3", "grads.clip")
def clip_each(rt, grads, hyper):
    norm = rt.grads_norm__reference(grads)
    return [g.mul_((hyper.tensor("max_norm") / ((g * g).sum().sqrt() + 1e-6)).clamp(max=1.0)) for g in grads], norm


@mutant("grads.clip", "the norm after clipping is given out", "C3", "grads.clip")
def norm_after_clipping(rt, grads, hyper):
    grads, _ = rt.grads_clip__reference(grads, hyper)
    return grads, rt.grads_norm__reference(grads)


@mutant("grads.norm", "the norm is the largest of all, not the sum", "C3", "grads.norm")
def norm_is_the_largest(rt, grads):
    import torch

    return torch.stack([(g * g).sum() for g in grads]).max().sqrt()


def drops_the_fourth(rt, total, more):
    rt.added = getattr(rt, "added", 0) + 1
    return total if rt.added == 4 else rt.grads_add__reference(total, more)


def begins_anew(rt, grads, by):
    rt.added = 0
    return rt.grads_scale__reference(grads, by)


add("fourth_micro_batch_dropped", "the fourth micro-batch of a step is dropped", "C7", "micro-batches",
    kernels=(Kernel("grads.add", "drops", drops_the_fourth), Kernel("grads.scale", "begins", begins_anew)))  # fmt: skip


# ---- the model ----


@mutant("model.forward", "pictures are cast to bf16 in fp32", "C3", "fp32", "model.forward")
def a_cast_too_many(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    import torch

    batch = batch._replace(images=batch.images.to(torch.bfloat16).float())
    return rt.model_forward__autograd(params, batch, key, autocast=autocast, label_smoothing=label_smoothing, **how)


@mutant("model.forward", "a copy of the parameters that is made once", "C3", "model.forward")
def stale_parameters(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    if not hasattr(rt, "copies"):
        rt.copies = tuple(p.detach().clone() for p in params)
    _, tape = rt.model_forward__autograd(params, batch, key, autocast=autocast, label_smoothing=label_smoothing, **how)
    stale, _ = rt.model_forward__autograd(tuple(c.requires_grad_() for c in rt.copies), batch, key, autocast=autocast,
                                          label_smoothing=label_smoothing, **how)  # fmt: skip
    rt.bind(params, training=True)
    return stale, tape


@mutant("model.forward", "every batch gets the masks of the first", "C3", "model.forward")
def a_key_reused(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    rt.positions = getattr(rt, "positions", batch.positions)
    return rt.model_forward__autograd(params, batch._replace(positions=rt.positions), key, autocast=autocast,
                                      label_smoothing=label_smoothing, **how)  # fmt: skip


@mutant("model.forward", "label smoothing is left out", "C3", "model.forward")
def smoothing_left_out(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    return rt.model_forward__autograd(params, batch, key, autocast=autocast, **how)


@mutant("model.forward", "right in fp32, wrong in bf16", "C3", "bf16", "model.forward")
def wrong_in_bf16(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    # The loss itself, as for some parameters it hardly changes with the pictures.
    loss, tape = rt.model_forward__autograd(
        params, batch, key, autocast=autocast, label_smoothing=label_smoothing, **how
    )
    return (loss if autocast is None else loss * 1.25), tape


@mutant("model.forward", "dropout is off in training", "C3", "model.forward")
def without_dropout(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    saved, rt.model.variant = rt.model.variant, rt.model.variant.replace(dropout=0.0)
    out = rt.model_forward__autograd(params, batch, key, autocast=autocast, label_smoothing=label_smoothing, **how)
    rt.model.variant = saved
    return out


@mutant(
    "model.forward",
    "the positions of the batch, which is borrowed, are overwritten",
    "C13",
    "model.forward",
    "borrowed",
)
def writes_into_the_batch(rt, params, batch, key, autocast=None, label_smoothing=0.0, **how):
    out = rt.model_forward__autograd(params, batch, key, autocast=autocast, label_smoothing=label_smoothing, **how)
    batch.positions.add_(1)
    return out


@mutant("model.backward", "the gradient of one parameter is lost", "C3", "model.backward", "blocks.1.attn.qkv.weight")
def one_gradient_lost(rt, tape):
    grads = rt.model_backward__autograd(tape)
    i = rt.names.index("blocks.1.attn.qkv.weight")
    grads[i] = grads[i] * 0
    return grads


# ---- metrics ----


@mutant("metrics.count", "padding is counted", "C3", "metrics.count")
def padding_counted(rt, metrics, logits, batch):
    return rt.metrics_count__reference(metrics, logits, batch._replace(weight=batch.weight * 0 + 1))


@mutant("health.check", "nothing is ever wrong", "C3", "health.check")
def always_healthy(rt, metrics, value):
    return rt.health_check__reference(metrics, value.nan_to_num(0.0, 0.0, 0.0))


@mutant("metrics.add", "the mean counts each value twice", "C3", "metrics.add")
def added_twice(rt, metrics, value, name):
    return rt.metrics_add__reference(rt.metrics_add__reference(metrics, value, name=name), value, name=name)


# ---- the host, the device, the ranks ----


@mutant("grads.clip", "the norm is read to decide whether to clip", "C4", "grads.clip")
def hidden_item(rt, grads, hyper):
    norm = rt.grads_norm__reference(grads)
    if norm.item() > hyper["max_norm"]:
        return rt.grads_clip__reference(grads, hyper)
    return grads, norm


def no_slots(rt, params, kind):
    rt.kind = kind
    return {}


def slots_at_last(rt, params, state, grads, hyper, ok):
    return rt.opt_update__reference(params, state or rt.opt_init__reference(params, kind=rt.kind), grads, hyper, ok)


add("state_at_the_first_update", "slots appear at the first update", "C5", "opt.update", "opt.init",
    kernels=(Kernel("opt.init", "no_slots", no_slots), Kernel("opt.update", "slots_at_last", slots_at_last)))  # fmt: skip


@mutant("grads.all_reduce", "the reduction is skipped", "C10", "grads.all_reduce")
def reduction_skipped(rt, grads, group):
    return grads


@mutant("grads.all_reduce", "a sum over ranks is taken for the mean", "C10", "grads.all_reduce")
def reduction_is_a_sum(rt, grads, group):
    grads = rt.grads_all_reduce__flat(grads, group=group) if rt.world.size > 1 else grads
    return [g.mul_(rt.world.size) for g in grads]


@mutant("grads.all_reduce", "a copy is reduced, and thrown away", "C10", "grads.all_reduce")
def reduction_does_nothing(rt, grads, group):
    if rt.world.size > 1:
        rt.grads_all_reduce__flat([g.clone() for g in grads], group=group)
    return grads


@mutant("grads.all_reduce", "rank 1 keeps its own", "C10", "drift")
def ranks_drift(rt, grads, group):
    if rt.world.size == 1:
        return grads
    reduced = rt.grads_all_reduce__flat([g.clone() for g in grads], group=group)
    return reduced if rt.world.rank == 0 else grads


@mutant("metrics.all_reduce", "each rank reports its own evaluation", "C10", "metrics.all_reduce")
def metrics_not_reduced(rt, metrics, group):
    return metrics


@mutant("opt.update", "rounding is carried in memory that no checkpoint holds", "C8", "checkpoint", kind="sgdm")
@_no_grad
def hidden_compensation(rt, params, state, grads, hyper, ok):
    hidden = getattr(rt, "hidden", None)
    before = [p.double() for p in params]
    params, state = rt.opt_update__reference(params, state, grads, hyper, ok)
    rt.hidden = hidden or [p.new_zeros(p.shape) for p in params]
    for p, b, h in zip(params, before, rt.hidden):
        p.add_(h)
        h.copy_((p.double() - b).float() * 1e-6)
    return params, state


_OF_THE_PROCESS = os.urandom(160)


@mutant("opt.update", "the last bits depend on the process", "C9", "two runs", kind="sgdm")
@_no_grad
def depends_on_the_process(rt, params, state, grads, hyper, ok):
    import torch

    out = rt.opt_update__reference(params, state, grads, hyper, ok)
    if rt.world.size == 1:
        last = params[rt.names.index("head.weight")]
        up = torch.tensor(list(_OF_THE_PROCESS)).view(last.shape) % 2 == 1
        last.copy_(torch.where(up, last.nextafter(torch.tensor(float("inf"))), last))
    return out


_KEPT: list[Any] = []


@mutant("grads.clip", "gradients are kept for ever", "C12", "tensors are left")
def keeps_tensors(rt, grads, hyper):
    _KEPT.append([g.clone() for g in grads])
    return rt.grads_clip__reference(grads, hyper)


@mutant("grads.clip", "a thread is started with each runtime", "C12", "threads are left")
def keeps_threads(rt, grads, hyper):
    import threading

    if not hasattr(rt, "helper"):
        rt.helper = threading.Thread(target=threading.Event().wait, daemon=True)
        rt.helper.start()
    return rt.grads_clip__reference(grads, hyper)


# ---- what is decided before ----

add("imports_torch", "torch is imported when kernels are asked for", "C1", "imports torch")

_asked = [0]


def _by_turns(op: Any, world: Any) -> bool:
    _asked[0] += 1
    return _asked[0] % 2 == 0


add("decides_by_turns", "a kernel's `when` depends on how often it was asked", "C2", "two texts",
    kernels=(Kernel("grads.zero", "turn", "vitcore.runtime.reference.grads:zero", _by_turns),))  # fmt: skip


@lowering_pass("placement")
def falls_back(program: Any, lowering: Any) -> Any:
    """A precision that is not offered becomes fp32 without a word."""
    if lowering.precision not in lowering.backend.precisions:
        lowering.precision = "fp32"
    return program


add("silent_precision", "a precision that is not offered becomes fp32", "C11", "not refused",
    passes=(("begin_lowering", falls_back),))  # fmt: skip


# ---- named formulas ----


@mutant("opt.update", "a formula is declared, and the usual one computed", "C3", "opt.update", kind="adamw",
        variant="adamw_eps_before_correction")  # fmt: skip
def declared_and_not_computed(rt, params, state, grads, hyper, ok):
    return rt.opt_update__reference(params, state, grads, hyper, ok)


def tanh_forward(rt, params, batch, key, autocast=None, casts=None, label_smoothing=0.0, **how):
    _tanh(rt)
    return rt.model_forward__autograd(
        params, batch, key, autocast=autocast, casts=casts, label_smoothing=label_smoothing, **how
    )


def tanh_apply(rt, params, batch, autocast=None, casts=None, **how):
    _tanh(rt)
    return rt.model_apply__eager(params, batch, autocast=autocast, casts=casts, **how)


def _tanh(rt):
    for block in rt.model.blocks:
        block.mlp.approximate = "tanh"


SOUND: dict[str, tuple[Backend, tuple[Kernel, ...]]] = {
    "sound-eps": (replace(HOST, name="sound-eps"), (
        Kernel("opt.update", "eps_first", eps_before_correction, _is_adamw, variant="adamw_eps_before_correction"),)),
    "sound-gelu": (replace(HOST, name="sound-gelu"), (
        Kernel("model.forward", "tanh", tanh_forward, variant="gelu_tanh"), Kernel("model.apply", "tanh", tanh_apply))),
}  # fmt: skip
"""Not mutants: they compute another formula, and say so."""


# ---- on a lazy device ----


@mutant("opt.update", "a mark that is declared is left out", "C6", "flushes", kind="sgdm", lazy=True, flushes=(0, 0, 1))
def mark_left_out(rt, params, state, grads, hyper, ok):
    return rt.opt_update__reference(params, state, grads, hyper, ok)


@mutant("opt.update", "a mark is made twice", "C6", "flushes", kind="sgdm", lazy=True, flushes=(0, 0, 1))
def mark_doubled(rt, params, state, grads, hyper, ok):
    out = rt.opt_update__reference(params, state, grads, hyper, ok)
    rt.mark()
    rt.mark()
    return out


@mutant("grads.clip", "a mark inside that nobody declared", "C6", "flushes", lazy=True)
def mark_undeclared(rt, grads, hyper):
    out = rt.grads_clip__reference(grads, hyper)
    rt.mark()
    return out


@mutant("grads.clip", "the norms of all steps in one tensor that grows", "C5", "compile", lazy=True)
def shape_that_changes(rt, grads, hyper):
    import torch

    grads, norm = rt.grads_clip__reference(grads, hyper)
    rt.norms = torch.cat([rt.norms, norm[None]]) if hasattr(rt, "norms") else norm[None]
    return grads, rt.norms[-1]


@mutant("grads.add", "an op that the device does not record", "C5", "fall back", lazy=True)
def falls_back_to_the_host(rt, total, more):
    import torch

    return [torch.lerp(t, t + m, 1.0) for t, m in zip(total, more)]


@mutant("grads.clip", "the norm is read, on a lazy device", "C4", "grads.clip", lazy=True)
def hidden_item_lazily(rt, grads, hyper):
    norm = rt.grads_norm__reference(grads)
    return rt.grads_clip__reference(grads, hyper) if bool(norm > 0) else (grads, norm)
