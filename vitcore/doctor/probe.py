"""Which line of Python did it: a step run under a dispatch mode that sees every op of torch.

After each op the device's counters, or its record, say what that op made the device do: so a device that keeps no record of
lines is told them. Ops, Python numbers and shapes are kept in order, to compare one step with the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import vitcore.runtime.guards as guards
from vitcore.doctor.lines import here
from vitcore.doctor.watch import Watch

_HOST = torch.Generator().device.type


@dataclass(frozen=True)
class Call:
    """An op of torch in a region: which op of the program, what, with which Python numbers and shapes, at which line."""

    at: str
    name: str
    numbers: tuple[float | int | bool, ...]
    shapes: tuple[tuple[int, ...], ...]
    line: str


@dataclass(frozen=True)
class Fault:
    """What an op did that it should not: `read` a value on the host, or `fallback`."""

    kind: str
    at: str
    name: str
    line: str
    phase: str


@dataclass
class Probed:
    """What one probed phase was seen to do."""

    calls: list[Call] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    copies: int = 0
    copied_bytes: int = 0


class _Methods(TorchFunctionMode):
    def __init__(self, probe: _Ops) -> None:
        super().__init__()
        self.probe = probe

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in guards.HOST_METHODS:
            self.probe.fault("read", guards.HOST_METHODS[func], here())
        return func(*args, **(kwargs or {}))


class _Ops(TorchDispatchMode):
    def __init__(self, watch: Watch, found: Probed) -> None:
        super().__init__()
        self.watch, self.found, self.depth = watch, found, 0

    def fault(self, kind: str, name: str, line: str) -> None:
        watch = self.watch
        if watch.in_region and watch.judged:
            self.found.faults.append(Fault(kind, watch.at, name, line, watch.now))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, watch = kwargs or {}, self.watch
        if not self._of_the_device(args, kwargs):  # of the host, as what a simulator computes with
            return guards.called(func, args, kwargs)
        line, name = here(), str(func)
        with _disable_current_modes():
            watch.settle(watch.at or "between ops")
        reads = guards.reads_device(func, args, kwargs)
        if reads:
            self.fault("read", name, line)
        elif self.depth == 0 and watch.in_region:
            self.found.calls.append(Call(watch.at, name, *_constants(args, kwargs), line))
        self.depth += 1
        try:
            out = guards.called(func, args, kwargs)
        finally:
            self.depth -= 1
        with _disable_current_modes():
            watch.settle(watch.at or "between ops", cause=name, line=line)
        if watch.fell_back and not reads:
            self.fault("fallback", name, line)
        if self.depth == 0:
            self._copied(func, args, out)
        return out

    def _of_the_device(self, args: Any, kwargs: Any) -> bool:
        kind = self.watch.rt.device.type
        given = kwargs.get("device")
        return (given is not None and torch.device(given).type == kind) or any(
            t.device.type == kind for t in _tensors(args)
        )

    def _copied(self, func: Any, args: Any, out: Any) -> None:
        source = {"_to_copy": 0, "copy_": 1}.get(func.overloadpacket.__name__)
        if source is None or not isinstance(out, Tensor) or not isinstance(args[source], Tensor):
            return
        if args[source].device.type == _HOST != out.device.type:
            self.found.copies += 1
            self.found.copied_bytes += args[source].numel() * args[source].element_size()


@contextmanager
def probed(watch: Watch) -> Iterator[Probed]:
    """Run what is inside under the probe; its lines in a backward are those of the forward."""
    found = Probed()
    ops = _Ops(watch, found)
    with ExitStack() as stack:
        # Only for its record of where each node of the graph was made: looking for values that are not finite would be a read.
        stack.enter_context(torch.autograd.set_detect_anomaly(True, check_nan=False))
        stack.enter_context(_Methods(ops))
        stack.enter_context(ops)
        yield found


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def _constants(args: Any, kwargs: Any) -> tuple[tuple[float | int | bool, ...], tuple[tuple[int, ...], ...]]:
    """The Python numbers among an op's arguments, and the shapes of its tensors."""
    numbers: list[float | int | bool] = []
    shapes: list[tuple[int, ...]] = []

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            shapes.append(tuple(value.shape))
        elif isinstance(value, (bool, int, float)):
            numbers.append(value)
        elif isinstance(value, (tuple, list)):
            for each in value:
                look(each)

    look([*args, *kwargs.values()])
    return tuple(numbers), tuple(shapes)
