"""Bytes as torch's own tensors show them: what autograd keeps, and the most that is alive while something runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.model.dropout import dropout_keys
from vitcore.model.loss import cross_entropy
from vitcore.model.vit import VisionTransformer, build_model, computes_narrow
from vitcore.runtime.casts import ExplicitCasts


def built(variant: str, side: int, classes: int, *, narrow: bool = False, on: str = "meta", **fields: Any) -> Any:
    """A model, its weights narrow as `params.narrow` makes them."""
    with torch.device(on):
        model = build_model(variant, side, classes, **fields)
    model = model.to(on)
    for name, p in list(model.named_parameters()) if narrow else ():
        if computes_narrow(name):
            path, _, last = name.rpartition(".")
            model.get_submodule(path)._parameters[last] = torch.nn.Parameter(p.to(torch.bfloat16))
    return model.train()


def kept_bytes(
    model: VisionTransformer, rows: int, *, casts: bool = False, pooled: bool = True,
    attention: Callable[..., Tensor] | None = None, run: Callable[..., Tensor] | None = None,
) -> int:  # fmt: skip
    """What autograd keeps of a forward of bytes, each storage once, parameters left out."""
    device, kept = model.norm.weight.device, dict[int, Tensor]()
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    if attention is not None:
        model.functions = replace(model.functions, self_attention=attention)

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage())._cdata not in own:
            kept[storage._cdata] = (
                tensor  # a tensor and not a number: a storage that is freed could give its address away
            )
        return tensor

    images = torch.zeros(rows, model.variant.channels, *model.img_size, dtype=torch.uint8, device=device)
    labels, weight = torch.zeros(rows, dtype=torch.int64, device=device), torch.ones(rows, device=device)
    with ExitStack() as stack:
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t))
        stack.enter_context(dropout_keys(torch.zeros(rows, dtype=torch.int32, device=device)))
        if casts:
            stack.enter_context(ExplicitCasts())
        loss = cross_entropy(model(images, reads="pooled" if pooled else "", run=run), labels, weight, 0.1)
    assert loss.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values())


class Live(TorchDispatchMode):
    """The most bytes of what ops made inside and was still held."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}

    def again(self) -> None:
        """From now on the most is that of what comes."""
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._held = {key: (ref, size) for key, (ref, size) in self._held.items() if not ref.expired()}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._held.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return out
