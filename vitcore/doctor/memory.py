"""The peak of the device's memory in a training step, planned from the lowered text and shapes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from vitcore.backend import Kernel
from vitcore.doctor.activations import How, Kept, activations
from vitcore.doctor.quantities import size
from vitcore.doctor.sizes import Sizes, state_bytes, trained_of
from vitcore.step.ir import Module, Op, walk

_LARGEST = 8


@dataclass(frozen=True)
class Memory:
    """Bytes, by what holds them. An estimate: what a device's own library adds, and what its compiler saves, is not in it."""

    parameters: int
    """With their narrow copies, and the average of them where there is one."""
    gradients: int
    optimizer: int
    activations: int
    """What autograd keeps of one micro-batch, at its highest."""
    working: int
    """What the backward holds besides, at its highest."""
    batch: int
    reduction: int
    peak: int
    micro_batch: int
    largest: tuple[str, ...]
    """The largest tensors, or equal ones together, each as a line."""
    said: str

    def line(self, free: int | None = None) -> str:
        """The plan in one line, beside what is free."""
        parts = [
            f"{name} {size(getattr(self, name))}" for name in ("parameters", "gradients", "optimizer", "activations")
        ]
        of = f" of {size(free)} free" if free is not None else ""
        return f"memory: {', '.join(parts)} (micro-batch of {self.micro_batch}), peak about {size(self.peak)}{of}"


def estimate(module: Module, sizes: Sizes, kernels: Sequence[Kernel] = ()) -> Memory:
    """Parameters, gradients and slots from shapes; activations as autograd keeps them for one micro-batch. `kernels` say what
    attention keeps, where the text names one of theirs."""
    ops = list(walk(module["train"].ops))
    runs = [op for op in ops if op.name in ("model.forward", "model.grad")]
    forward = runs[0]
    how, unknown = _how(forward, kernels)
    how = replace(how, unrecorded=_unrecorded(module, sizes))
    of_trained, optimizer = state_bytes(module, sizes)
    numbers = {name: prod(shape) for name, shape in sizes.shapes.items()}
    average = any(v.ty.kind == "ema" for v in module.state)
    climbs = any(op.name == "params.ascend" for op in ops)
    narrow = any(op.name == "params.narrow" for op in ops)
    parameters = sum(numbers.values()) * (4 + 4 * average + 2 * narrow) + of_trained * climbs
    held, made = _gradients(ops, forward, of_trained, kernels)
    found = activations(sizes.variant, sizes.side, sizes.micro_batch, sizes.classes, how)
    remat = forward.attrs.get("remat") == "blocks"
    working = found.working + (max(numbers.values()) * how.product if not made else 0)
    bytes_stay = any(op.name == "data.put" and op.attrs.get("pixels") == "bytes" for op in ops)
    batch = sizes.batch_bytes(sizes.micro_batch, keys=sizes.draws)
    batch *= 2 if any(op.name == "data.peek" for op in ops) else 1  # the next one is there too
    batch += 4 * sizes.micro_batch * sizes.pixels if sizes.pixel_bytes == 1 and not bytes_stay else 0
    copies = any(op.name == "grads.all_reduce" and op.attrs.get("impl") not in ("identity", "buffer") for op in ops)
    reduction = of_trained if copies else 0
    kept = found.peak(remat)
    # A lazy device runs a whole backward, while the host still holds all that the forward handed over.
    stays = made if module["train"].attrs.get("lazy") == "yes" else 0
    peak = parameters + held + optimizer + max(
        kept + stays + working + batch, found.first + made + working + batch,
        (0 if held else made) + reduction,
    )  # fmt: skip
    cast = "the narrow type by the table of bf16-casts" if forward.attrs.get("autocast") else ""
    lines = [*found.largest(remat), *(Kept(name, sizes.shapes[name], 4) for name in sizes.shapes)]
    largest = sorted(lines, key=lambda k: -k.bytes)[:_LARGEST]
    return Memory(
        parameters, held + made, optimizer, kept, working, batch, reduction, peak, sizes.micro_batch,
        tuple(map(_line, largest)), "; ".join(filter(None, (unknown, cast, sizes.assumed))),
    )  # fmt: skip


def _gradients(ops: Sequence[Op], forward: Op, of_trained: int, kernels: Sequence[Kernel]) -> tuple[int, int]:
    """Bytes of gradients that are there before a backward, and of those that come to be in it while what was kept goes."""
    sums = len(forward.args) > 3 or any(op.name == "grads.add" for op in ops)
    reduces = any(op.name == "grads.all_reduce" and op.attrs.get("impl") != "identity" for op in ops)
    narrow = of_trained // 2 if forward.args[0].ty.kind == "weights" else 0
    if forward.name != "model.grad":  # those of a micro-batch beside the sum; narrow ones are widened at the end
        return of_trained * sums, of_trained + narrow
    kernel = next((k for k in kernels if (k.op, k.name) == (forward.name, forward.attrs.get("impl"))), None)
    if kernel and str(kernel.fn).endswith("at_once"):  # all of them, joined, then put into their places
        return of_trained, of_trained + (narrow or of_trained)
    return (of_trained, 0) if sums or reduces else (0, of_trained)  # one by one into the sum, or into what is reduced


def _how(op: Op, kernels: Sequence[Kernel]) -> tuple[How, str]:
    """How the forward computes, by its text, and what is not known of that."""
    attrs = op.attrs
    named = [(f, attrs[f]) for f in ("self_attention", "attention") if f in attrs][:1]
    keeps = next((k.keeps for k in kernels if (k.op, k.name) in named), None)
    unknown = (
        f"what {named[0][1]} keeps is not known and taken to be what the reference does" if named and not keeps else ""
    )
    casts = "casts" in attrs or "autocast" in attrs
    narrow = op.args[0].ty.kind == "weights"
    how = How(
        residual=2 if narrow else 4, product=2 if narrow or casts else 4, casts=casts,
        pooled=attrs.get("reads") == "pooled", patch_dropout=float(attrs.get("patch_dropout", 0)), keeps=keeps,
    )  # fmt: skip
    return how, unknown


def _unrecorded(module: Module, sizes: Sizes) -> int:
    """How many things come before the first of which something is trained: what makes tokens, then the blocks."""
    trained = [name for name, yes in zip(sizes.shapes, trained_of(module, sizes), strict=True) if yes]
    firsts = [
        int(n.split(".")[1]) + 1 if n.startswith("blocks.") else sizes.variant.depth + 1
        if n.startswith(("norm.", "pre_logits.", "head.")) else 0
        for n in trained
    ]  # fmt: skip
    return min(firsts)


def _line(kept: Kept) -> str:
    shape = "x".join(map(str, kept.shape))
    times = f"{kept.times} times " if kept.times > 1 else ""
    return f"{kept.where}: {times}{shape} numbers of {kept.number} bytes, {size(kept.bytes)}"
