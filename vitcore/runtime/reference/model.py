"""The compute leaf `autograd`: the module as it is, and `torch.autograd.grad`."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vitcore.data.order import sample_keys
from vitcore.model.dropout import dropout_keys
from vitcore.model.init import init_parameters
from vitcore.model.loss import LOSSES, Mixed
from vitcore.runtime.casts import ExplicitCasts
from vitcore.runtime.reference.data import DeviceBatch, Key
from vitcore.runtime.remat import checkpointed

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime

Params = tuple[Tensor, ...]


class Tape(NamedTuple):
    """What backward needs: the loss with its graph, and the parameters it borrows."""

    loss: Tensor
    params: Params


def init(rt: Runtime, key: Key) -> Params:
    """Fresh parameters, drawn on the host so that they are equal on every device."""
    init_parameters(rt.model, torch.Generator().manual_seed(key.seed))
    return rt.own_params()


def _precision(rt: Runtime, autocast: str | None, casts: str | None) -> AbstractContextManager:
    if casts == "bf16":
        return ExplicitCasts()
    return torch.autocast(rt.device.type, torch.bfloat16) if autocast == "bf16" else nullcontext()


def _keys(rt: Runtime, batch: DeviceBatch, key: Key) -> AbstractContextManager:
    if not rt.draws_in_forward:
        return nullcontext()
    made = batch.draws.get(f"keys/{key.stream}")
    if made is None:
        host = row_keys(batch, key)
        made = (host.pin_memory() if rt.backend.pinned else host).to(rt.device, non_blocking=rt.backend.pinned)
    return dropout_keys(made)


def row_keys(batch: DeviceBatch, key: Key) -> Tensor:
    """The dropout key of each row, int32 (B,), on the host. What records a step on the device, where the host is not asked
    again, puts it into the batch's draws as `keys/STREAM` beforehand."""
    return torch.from_numpy(sample_keys(key.seed, batch.positions.numpy(), zlib.crc32(key.stream.encode())))


def forward(
    rt: Runtime, params: Params, batch: DeviceBatch, key: Key, autocast: str | None = None, casts: str | None = None,
    label_smoothing: float = 0.0, loss: str = "softmax", patch_dropout: float = 0.0, reads: str = "", remat: str = "",
    **functions: str,
) -> tuple[Tensor, Tape]:  # fmt: skip
    """The mean loss over the rows of weight 1, and the tape. Which patches `patch_dropout` keeps, the host drew; `functions`
    are the model's that kernels have claimed. With `remat` "blocks" each block runs once more in the backward."""

    @contextmanager
    def again() -> Iterator[None]:
        rt.bind(params, training=True, functions=functions)
        with _precision(rt, autocast, casts):
            yield

    rt.bind(params, training=True, functions=functions)
    run = checkpointed(again) if remat == "blocks" else None
    with _keys(rt, batch, key), _precision(rt, autocast, casts):
        logits = rt.model(batch.images, batch.draws["keep"] if patch_dropout else None, reads, run)
    mixed = Mixed(batch.draws["partner"], batch.draws["own"]) if "partner" in batch.draws else None
    # Outside of it: some devices' autocast narrows products and means, and with them the loss.
    value = LOSSES[loss](logits, batch.labels, batch.weight, label_smoothing, mixed)
    return value.detach(), Tape(value, params)


def backward(rt: Runtime, tape: Tape) -> list[Tensor]:
    """Gradients into fresh buffers, one a parameter that is not frozen."""
    # A worker's thread lets go of its last tensors a moment after it is done. Where the device is flushed in that moment they
    # are outputs of the graph, which is then another one and compiled anew.
    with torch.autograd.set_multithreading_enabled(not rt.backend.lazy):
        made = torch.autograd.grad(tape.loss, [tape.params[i] for i in rt.trained])
    return rt.bundle([g.to(torch.float32) for g in made])  # of narrow copies they are narrow


def apply(
    rt: Runtime, params: Params, batch: DeviceBatch, autocast: str | None = None, casts: str | None = None,
    reads: str = "", **functions: str,
) -> Tensor:  # fmt: skip
    """Logits [B, K] f32 in evaluation mode, without a graph."""
    rt.bind(params, training=False, functions=functions)
    with torch.no_grad(), _precision(rt, autocast, casts):
        return rt.model(batch.images, reads=reads).float()
