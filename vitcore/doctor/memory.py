"""An estimate of the peak of the device's memory in a training step, from shapes alone."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.doctor.sizes import Sizes, state_bytes
from vitcore.model.dropout import dropout_keys
from vitcore.model.loss import cross_entropy
from vitcore.runtime.casts import ExplicitCasts
from vitcore.step.ir import Module, walk


@dataclass(frozen=True)
class Memory:
    """Bytes, by what holds them. An estimate: what a device's own library adds, and what its compiler saves, is not in it."""

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    working: int
    """What the backward holds besides, at its highest."""
    batch: int
    reduction: int
    peak: int
    said: str


def estimate(module: Module, sizes: Sizes) -> Memory:
    """Parameters, gradients and slots from shapes; activations as autograd saves them for one micro-batch, each storage
    once, parameters left out."""
    model, train = sizes.model(), module["train"]
    parameters = 4 * sum(p.numel() for p in model.parameters())
    ops = list(walk(train.ops))
    narrow = next((op.attrs for op in ops if op.name == "model.forward"), {})
    # Gradients are added up in one buffer for each parameter while backward makes fresh ones; a lazy device keeps the zeros
    # of the next step besides.
    adds = any(op.name == "grads.add" for op in ops)
    of_trained, optimizer = state_bytes(module, model)
    gradients = of_trained * (1 + adds)
    activations, backward = held_bytes(model, sizes, narrow="casts" in narrow or "autocast" in narrow)
    working = max(backward - of_trained, 0)  # the gradients that it makes are counted already
    # What is copied, and as numbers of four bytes where bytes were.
    batch = sizes.batch_bytes(sizes.micro_batch, keys=sizes.draws)
    batch += 4 * sizes.micro_batch * sizes.pixels if sizes.pixel_bytes == 1 else 0
    reduces = any(op.name == "grads.all_reduce" and op.attrs.get("impl") != "identity" for op in ops)
    reduction = of_trained if reduces else 0
    peak = parameters + gradients + optimizer + max(activations + working + batch, reduction)
    how = "the narrow type by the table of bf16-casts" if narrow.get("autocast") else ""
    said = "; ".join(filter(None, ("reference leaf and attention", how, sizes.assumed)))
    return Memory(parameters, gradients, optimizer, activations, working, batch, reduction, peak, said)


def held_bytes(model: torch.nn.Module, sizes: Sizes, *, narrow: bool) -> tuple[int, int]:
    """Bytes that autograd keeps from the forward of one micro-batch for its backward, and the most that the backward makes
    and holds, while all that was kept stays."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    # Tensors and not numbers are kept: a storage that is freed could give its address to the next.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = tensor
        return tensor

    rows, meta = sizes.micro_batch, torch.device("meta")
    images = torch.empty(rows, sizes.variant.channels, *sizes.side, device=meta)
    labels, weight = torch.empty(rows, dtype=torch.int64, device=meta), torch.empty(rows, device=meta)
    keys = dropout_keys(torch.empty(rows, dtype=torch.int32, device=meta)) if sizes.draws else nullcontext()
    model.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t),
        keys,
        ExplicitCasts() if narrow else nullcontext(),
    ):
        loss = cross_entropy(model(images), labels, weight, 0.1)
    with _Live({*own, *kept}) as live:
        torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
    return sum(t.untyped_storage().nbytes() for t in kept.values()), live.most


class _Live(TorchDispatchMode):
    """The most bytes of what ops make and is still held, beside storages that are `known`."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.most = known, 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._held = {key: (ref, size) for key, (ref, size) in self._held.items() if not ref.expired()}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage())._cdata not in self.known:
                self._held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return out
