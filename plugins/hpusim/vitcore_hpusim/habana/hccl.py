"""The process group `hccl`, over gloo: what it refuses, casts and flushes is the bridge's
(distributed/hccl/process_group_hccl_base.cpp, backend/helpers/collective_utils.cpp)."""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitcore_hpusim.recorder import undisturbed
from vitcore_hpusim.tensor import UNDER, HpuTensor

_NATIVE = (torch.float32, torch.bfloat16)


class _Work(dist._Work):
    """A collective that has been carried out; its time limit is ignored, as the bridge ignores it."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()
        self._future = torch.futures.Future()
        self._future.set_result(tensors)

    def wait(self, timeout: Any = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def get_future(self) -> Any:
        return self._future


class HcclGroup(dist.ProcessGroup):
    """Each collective flushes what is recorded first (PT_HPU_ENABLE_LAZY_COLLECTIVES is off by default)."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
        super().__init__(rank, size)
        self._under = dist.ProcessGroupGloo(store, rank, size, timeout)

    def getBackendName(self) -> str:
        return "hccl"

    def _values(self, tensors: list[Tensor]) -> list[Tensor]:
        recorder = HpuTensor.recorder
        if recorder.lazy:
            recorder.flush("collective")
        found: list[Tensor] = []
        for t in tensors:
            if not isinstance(t, HpuTensor):
                raise RuntimeError("hccl: a collective takes tensors of the device hpu")
            assert t._slot.value is not None
            found.append(t._slot.value)
        return found

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> _Work:
        op = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        if not any(
            op == known for known in (dist.ReduceOp.SUM, dist.ReduceOp.MIN, dist.ReduceOp.MAX, dist.ReduceOp.PRODUCT)
        ):
            raise RuntimeError("Unsupported ReduceOp for HCCL process group")
        asked = dist.AllreduceOptions()
        asked.reduceOp = op
        for value in self._values(tensors):
            with undisturbed():
                # Other types go through float32, and lose what it cannot hold.
                wide = value if value.dtype in _NATIVE else value.float()
                self._under.allreduce([wide], asked).wait()
                if wide is not value:
                    value.copy_(wide)
        return _Work(tensors)

    def broadcast(self, tensors: list[Tensor], opts: Any) -> _Work:
        with undisturbed():
            for value in self._values(tensors):
                self._under.broadcast([value], opts).wait()
        return _Work(tensors)

    def allgather(self, outs: list[list[Tensor]], tensors: list[Tensor], opts: Any = None) -> _Work:
        into, values = [self._values(some) for some in outs], self._values(tensors)
        with undisturbed():
            self._under.allgather(into, values).wait()
        return _Work(outs[0])

    def barrier(self, opts: Any = None) -> _Work:
        # Polls the store on the host: flushes nothing, and never times out.
        self._under.barrier().wait()
        return _Work([])


def initialize_distributed_hpu(
    world_size: int | None = None, rank: int | None = None, local_rank: int | None = None
) -> tuple[int, int, int]:
    """distributed/hccl/__init__.py: what the launcher's environment says; (1, -1, -1) where it says nothing."""
    import os

    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK")
    given = (world_size, rank, local_rank)
    if None not in given:
        os.environ.update({n: str(v) for n, v in zip(names, given)})
    if all(n in os.environ for n in names):
        size, mine, local = (int(os.environ[n]) for n in names)
        return size, mine, local
    return 1, -1, -1


def register() -> None:
    """Make `hccl` known, and give `init_process_group` the signature that the vendor's patch leaves it
    (core/torch_overwrites.py:214): a required backend, and no `device_id`."""
    dist.Backend.register_backend("hccl", HcclGroup, devices=["hpu", UNDER])
    original = dist.init_process_group
    half_an_hour = datetime.timedelta(seconds=1800)

    def init_process_group(
        backend: str, init_method: str | None = None, timeout: datetime.timedelta = half_an_hour, world_size: int = -1,
        rank: int = -1, store: Any = None, group_name: str = "", pg_options: Any = None,
    ) -> None:  # fmt: skip
        original(backend, init_method, timeout, world_size, rank, store, group_name, pg_options)

    dist.init_process_group = init_process_group  # type: ignore[assignment]
