"""The process group: who we are, from the launcher's environment, and its opening and closing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from vitcore.backend import Backend, World
from vitcore.errors import VitcoreError
from vitcore.runtime.opening import explained

if TYPE_CHECKING:
    import torch

# (rank, size) as torchrun and Open MPI's mpirun say them.
_LAUNCHERS = (("RANK", "WORLD_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"))
TIMEOUT = timedelta(minutes=30)


def world_from_env(env: Mapping[str, str] = os.environ) -> World:
    """The world that torchrun (RANK, WORLD_SIZE) or mpirun (OMPI_COMM_WORLD_*) describes; alone where neither does."""
    for rank_name, size_name in _LAUNCHERS:
        if (rank_name in env) != (size_name in env):
            has, lacks = (rank_name, size_name) if rank_name in env else (size_name, rank_name)
            raise VitcoreError(f"{has} is set but {lacks} is not; set both, or start through torchrun or mpirun")
        if rank_name in env:
            rank, size = env[rank_name], env[size_name]
            if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
                raise VitcoreError(f"{rank_name}={rank} of {size_name}={size} is no rank; ranks go from 0 to size - 1")
            return World(int(size), int(rank))
    return World()


def open_group(backend: Backend, world: World) -> bool:
    """Join the process group through the backend's collective library, and say whether it was joined here: a world of one
    needs none, and who has joined for several runs stays in it. Left and joined again it could meet its own past in the
    launcher's store, where old addresses stand under the same names."""
    if world.size == 1:
        return False
    if backend.collective is None:
        raise VitcoreError(
            f"backend {backend.name!r} has no collective, so it cannot run {world.size} ranks; start one process"
        )
    import torch.distributed as dist

    if dist.is_initialized():
        return False
    if "MASTER_ADDR" not in os.environ and "OMPI_COMM_WORLD_SIZE" in os.environ:
        local = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        if local != str(world.size):
            raise VitcoreError(
                "MASTER_ADDR is not set and the ranks are on several machines; set it to rank 0's address"
            )
        os.environ["MASTER_ADDR"] = "localhost"
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        raise VitcoreError("WORLD_SIZE is above 1 but MASTER_ADDR is not set; start through torchrun or set it")

    def join() -> None:
        # Only keywords that every vendor's replacement of this function takes.
        dist.init_process_group(backend.collective, rank=world.rank, world_size=world.size, timeout=TIMEOUT)

    explained(backend, f"joining {world.size} ranks", join)
    return True


def close_group() -> None:
    """Leave the process group where there is one."""
    import torch
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    # In torch 2.7 a group of the host waits, with Python's lock in its hand, for threads of its own; one that still holds a
    # tensor needs the lock to let go of it, and both wait for ever. The backend's own object lets go of the lock before it
    # waits, so it is to be the last reference.
    held, group = None, dist.group.WORLD
    if group is not None:
        with suppress(RuntimeError):  # the group has no part for tensors of the host
            held = group._get_backend(torch.Generator().device)
    del group
    dist.destroy_process_group()
    del held


def every_rank(value: float, device: torch.device) -> list[float]:
    """What each rank says, by rank, on all of them: a number that float32 holds, such as a vote to stop.

    A sum of float32 on the device, which is what every collective library does best; some turn other types into it.
    """
    import torch
    import torch.distributed as dist

    said = torch.zeros(dist.get_world_size(), dtype=torch.float32)
    said[dist.get_rank()] = value
    said = said.to(device)
    dist.all_reduce(said, op=dist.ReduceOp.SUM)
    numbers: list[float] = said.tolist()
    return numbers
