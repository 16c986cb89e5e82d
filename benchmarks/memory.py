"""Bytes that a loop holds between its steps, and the most that a step adds to them.

An accelerator's allocator counts both, or nobody does, which is 0. On the host torch's profiler reports every allocation of its
allocator; what a library keeps for itself (packed weights, say) is not seen there.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from typing import Any

import torch


def held(device: torch.device) -> int:
    """Bytes of tensors that are alive; 0 where the device does not count."""
    gc.collect()
    if device.type != "cpu":
        module = _allocator(device)
        return int(module.memory_allocated()) if module else 0
    sizes: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) not in (torch.Tensor, torch.nn.Parameter):  # a compiler's stand-ins hold no memory
            continue
        for tensor in (thing, thing.grad if thing.is_leaf else None):
            if tensor is not None and tensor.device.type == "cpu" and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _allocator(device: torch.device) -> Any:
    """torch's module of the device, where that counts bytes."""
    module = getattr(torch, device.type, None)
    return module if hasattr(module, "max_memory_allocated") else None


def added(device: torch.device, step: Callable[[Any], None], wait: Callable[[], Any]) -> int:
    """The most bytes that a step holds beyond what was held before it. `step` is given a context to work in, since a profiler
    sees its own thread alone."""
    if device.type != "cpu":
        module = _allocator(device)
        wait()
        if module is None:
            return 0
        before = module.memory_allocated()
        module.reset_peak_memory_stats()
        step(contextlib.nullcontext())
        wait()
        return int(module.max_memory_allocated() - before)
    from torch.profiler import ProfilerActivity, profile

    with_memory = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    step(with_memory)
    events = with_memory.profiler.kineto_results.events()  # type: ignore[union-attr]
    allocations = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    most = now = 0
    for _, size in allocations:
        now += size
        most = max(most, now)
    return most
