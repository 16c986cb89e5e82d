"""What one training step does, counted: no clock, so the same on every machine of a backend.

Calls of kernels by the op of the program that they implement; ops of torch by kind, as a dispatch mode sees them; waits of the
host; how many of the parameters' numbers are cast, and written. Of a recorded graph that a device replays a mode sees nothing.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import record_function
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.ours import OurLoop
from benchmarks.workload import Workload
from vitcore.plan import Plan
from vitcore.runtime.guards import HOST_METHODS, called, reads_device

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul")
ROBUST = (
    "host reads", "forwards", "backwards", "kernels of model", "kernels of opt", "kernels of grads", "marks", "matrix products",
    "parameters cast", "parameters written",
)  # fmt: skip
"""What does not move with torch's version: these are compared with a file."""


class Seen:
    """Ops of torch and calls of kernels, in one step."""

    def __init__(self, params: Iterable[Tensor]) -> None:
        held = list(params)
        self.numbers = sum(p.numel() for p in held)
        self.storages = {_memory(p) for p in held}
        self.ops: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.reads = self.cast = self.written = self.allocated = 0

    def look(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Count a call of an op."""
        name = func.overloadpacket.__name__
        self.ops[name] += 1
        self.reads += reads_device(func, args, kwargs)
        for source, result in _copies(name, args, out):
            if source.dtype != result.dtype and _memory(source) in self.storages:
                self.cast += source.numel()
        for tensor in _written(func, args, kwargs):
            if _memory(tensor) in self.storages:
                self.written += tensor.numel()
        before = {_memory(t) for t in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if _memory(tensor) not in before:
                self.allocated += tensor.numel() * tensor.element_size()


class _Ops(TorchDispatchMode):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = called(func, args, kwargs or {})
        self.seen.look(func, args, kwargs or {}, out)
        return out


class _Methods(TorchFunctionMode):
    """Waits that never reach the dispatcher."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.reads += func in HOST_METHODS
        return func(*args, **(kwargs or {}))


def count_step(job: Workload, plan: Plan) -> dict[str, int | float]:
    """Counts of the third step: by then what is made once has been made."""
    seen: list[Seen] = []

    def wrap(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(kernel)
        def counted(*args: Any, **kwargs: Any) -> Any:
            if seen:
                seen[0].kernels[name.partition("__")[0]] += 1
            return kernel(*args, **kwargs)

        return counted

    loop = OurLoop(job, plan, wrap=wrap)
    try:
        loop.step()
        loop.step()
        before = loop.exe.stats()
        seen.append(Seen(loop.exe.rt.own_params()))
        with _phases(seen[0].phases), _Methods(seen[0]), _Ops(seen[0]):
            loop.step()
        after = loop.exe.stats()
    finally:
        loop.close()
    found = seen[0]
    kernels = found.kernels
    return {
        "host reads": found.reads + after.host_reads - before.host_reads,
        "forwards": kernels["model_forward"] + found.phases["model.forward"],
        "backwards": kernels["model_backward"] + found.phases["model.backward"],
        **{f"kernels of {family}": _family(kernels, family) for family in ("model", "opt", "grads")},
        "kernels": kernels.total(),
        "marks": after.marks - before.marks,
        "matrix products": sum(found.ops[name] for name in PRODUCTS),
        # In models: 1 is every parameter once, whatever number of calls it takes.
        "parameters cast": round(found.cast / found.numbers, 2),
        "parameters written": round(found.written / found.numbers, 2),
        "bytes allocated": found.allocated,
        "ops": found.ops.total(),
        **{f"aten.{name}": n for name, n in sorted(found.ops.items())},
    }


def _family(kernels: Counter[str], family: str) -> int:
    return sum(n for name, n in kernels.items() if name.startswith(f"{family}_"))


@contextmanager
def _phases(seen: Counter[str]) -> Iterator[None]:
    """Count the marks `model.forward` and `model.backward` that a kernel which does both makes for torch's profiler."""
    enter = record_function.__enter__

    def counted(self: Any) -> Any:
        seen[self.name] += 1
        return enter(self)

    record_function.__enter__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        record_function.__enter__ = enter  # type: ignore[method-assign]


def _memory(tensor: Tensor) -> int:
    """What tells one memory from another; of a device that records, whose tensors have none, one tensor from another."""
    return tensor.untyped_storage()._cdata if torch._C._has_storage(tensor) else -id(tensor)


def _copies(name: str, args: Any, out: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """What an op copies, and to where."""
    if name == "_to_copy":
        yield args[0], out
    elif name == "copy_":
        yield args[1], args[0]
    elif name == "_foreach_copy_":
        yield from zip(args[1], args[0])


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """The tensors that an op writes into, as its schema says."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[i] if i < len(args) else kwargs.get(argument.name))


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, (tuple, list)):
        for part in nest:
            yield from _tensors(part)
    elif isinstance(nest, dict):
        yield from _tensors(list(nest.values()))
