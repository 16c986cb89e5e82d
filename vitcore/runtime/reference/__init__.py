"""The reference kernels, one plain function an op, and the torch-free table that offers them to every backend.

They are pure up to donation: what an op consumes may be written in place, what it borrows never. They stay inside the
subset of torch that lazy devices record without falling back: no unbind, chunk or split, no norm ops, no lerp, no
Python float times a 0-d tensor, no host read.
"""

from __future__ import annotations

from vitcore.backend import Kernel, World
from vitcore.step.ir import Op

_HERE = "vitcore.runtime.reference"


def _one_rank(op: Op, world: World) -> bool | str:
    return world.size == 1 or f"{world.size} ranks must be reduced"


def several_ranks(op: Op, world: World) -> bool | str:
    """When a kernel reduces over ranks, of which there must be two."""
    return world.size > 1 or "one rank has nothing to reduce"


def _by_one(op: Op, world: World) -> bool | str:
    return op.attrs.get("by") == "1/1" or "the factor is not 1"


REFERENCE: tuple[Kernel, ...] = (
    Kernel("data.next", "reference", f"{_HERE}.data:next_batch"),
    Kernel("data.peek", "reference", f"{_HERE}.data:peek"),
    Kernel("data.advance", "reference", f"{_HERE}.data:advance"),
    Kernel("data.put", "reference", f"{_HERE}.data:put"),
    Kernel("data.augment", "reference", f"{_HERE}.augment:augment"),
    Kernel("rng.split", "reference", f"{_HERE}.data:split"),
    Kernel("model.init", "reference", f"{_HERE}.model:init"),
    Kernel("model.forward", "autograd", f"{_HERE}.model:forward"),
    Kernel("model.backward", "autograd", f"{_HERE}.model:backward"),
    Kernel("model.apply", "eager", f"{_HERE}.model:apply"),
    Kernel("grads.zero", "reference", f"{_HERE}.grads:zero"),
    Kernel("grads.add", "reference", f"{_HERE}.grads:add"),
    Kernel("grads.scale", "identity", f"{_HERE}.grads:scale_identity", _by_one),
    Kernel("grads.scale", "reference", f"{_HERE}.grads:scale"),
    Kernel("grads.all_reduce", "identity", f"{_HERE}.grads:all_reduce_identity", _one_rank),
    Kernel("grads.all_reduce", "flat", f"{_HERE}.grads:all_reduce_flat", several_ranks),
    Kernel("grads.norm", "reference", f"{_HERE}.grads:norm"),
    Kernel("grads.clip", "reference", f"{_HERE}.grads:clip"),
    Kernel("health.check", "reference", f"{_HERE}.metrics:health_check"),
    Kernel("opt.init", "reference", f"{_HERE}.optim:init"),
    Kernel("opt.update", "reference", f"{_HERE}.optim:update"),
    Kernel("params.narrow", "reference", f"{_HERE}.params:narrow"),
    Kernel("params.ascend", "reference", f"{_HERE}.params:ascend"),
    Kernel("params.descend", "identity", f"{_HERE}.params:descend"),
    Kernel("ema.init", "reference", f"{_HERE}.params:average"),
    Kernel("ema.update", "reference", f"{_HERE}.params:update_average"),
    Kernel("metrics.zero", "reference", f"{_HERE}.metrics:zero"),
    Kernel("metrics.add", "reference", f"{_HERE}.metrics:add"),
    Kernel("metrics.count", "reference", f"{_HERE}.metrics:count"),
    Kernel("metrics.all_reduce", "identity", f"{_HERE}.metrics:all_reduce_identity", _one_rank),
    Kernel("metrics.all_reduce", "flat", f"{_HERE}.metrics:all_reduce_flat", several_ranks),
    Kernel("metrics.read", "reference", f"{_HERE}.metrics:read"),
)
