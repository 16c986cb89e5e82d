"""A whole step as one CUDA graph: launched as one, without the host's work for each of a thousand kernels.

The first calls run as they are, on a stream of their own, as torch's documentation of CUDA graphs asks for: libraries get their
workspaces then, and they are steps like any other. The next one is recorded. From then on an operand that is not the recorded
memory is copied into it: the batch each time, the metrics after they were read, the whole state after a restore. Scalars that
kernels took on the device are written anew each time; one that a kernel took as a number of the host is a part of the
graph, which is recorded again where it changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitcore.runtime.hyper import Hyper
from vitcore.runtime.reference.data import DeviceBatch, Key
from vitcore.runtime.reference.model import row_keys

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime

WARM_UP = 3


class Graph:
    """The calls of torch.cuda, in one place, so that the rest runs on any device."""

    _stream: Any = None

    def aside(self, fn: Callable[[], Any]) -> Any:
        """Run on a stream of its own, between what the current one has done and will do."""
        # The same one each time: what was freed in one stream is not given to another, and a step's memory is most of all.
        self._stream = stream = self._stream or torch.cuda.Stream()
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            out = fn()
        current.wait_stream(stream)
        return out

    def record(self, fn: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Record and do not run; what launches it, and what it will have returned."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = fn()
        return graph.replay, out


class DeviceHyper(Hyper):
    """Scalars whose tensors stay where they are from step to step."""

    __slots__ = ("as_numbers",)

    def __init__(self, values: Any, device: torch.device) -> None:
        super().__init__(values, device)
        self.as_numbers: dict[str, float] = {}
        """Those that a kernel asked for as numbers of the host, and what they were."""

    def __getitem__(self, name: str) -> float:
        self.as_numbers[name] = self.values[name]
        return self.values[name]

    def renew(self, values: Any) -> bool:
        """Take a step's values; False where a number that is a part of the recorded graph is another one."""
        self.values = values
        for (name, times), tensor in self._tensors.items():
            tensor.fill_(values[name] * times)
        return all(values[name] == was for name, was in self.as_numbers.items())


def capture(rt: Runtime, fn: Callable[..., Any]) -> Callable[..., Any]:
    """What stands in for the region's function `fn`."""
    return Recorded(rt, fn, Graph())


@dataclass
class Recorded:
    """A region that is run, then recorded, then launched."""

    rt: Runtime
    fn: Callable[..., Any]
    graph: Graph
    calls: int = 0
    recordings: int = 0
    _hyper: DeviceHyper | None = None
    _launch: Callable[[], None] | None = None
    _operands: tuple[Any, ...] = ()
    _out: Any = None
    _held: list[Tensor] = field(default_factory=list)

    def __call__(self, *operands: Any) -> Any:
        operands, same = self._prepared(operands)
        self.calls += 1
        if self.calls <= WARM_UP:
            return self.graph.aside(lambda: self.fn(*operands))
        if self._launch is None or not same or not self._fill(operands):
            self._record(operands)
        assert self._launch is not None
        self._launch()
        return self._out

    def _prepared(self, operands: tuple[Any, ...]) -> tuple[tuple[Any, ...], bool]:
        """The operands with what the host would be asked for in the region, and whether the recorded numbers still hold."""
        same, keys = True, [o for o in operands if isinstance(o, Key)]
        out = []
        for operand in operands:
            if isinstance(operand, Hyper):
                if self._hyper is None:
                    self._hyper = DeviceHyper(operand.values, self.rt.device)
                same = self._hyper.renew(operand.values) and same
                operand = self._hyper
            elif isinstance(operand, DeviceBatch) and self.rt.draws_in_forward:
                made = {f"keys/{k.stream}": _to_device(row_keys(operand, k), self.rt.device) for k in keys}
                operand = operand._replace(draws={**operand.draws, **made})
            out.append(operand)
        return tuple(out), same

    def _record(self, operands: tuple[Any, ...]) -> None:
        self._launch, self._out = None, None  # gives the memory of an older graph back first
        if self._hyper is not None:
            self._hyper.as_numbers.clear()
        self._operands, self._held = operands, list(_tensors(operands))
        self._launch, self._out = self.graph.record(lambda: self.fn(*operands))
        self.recordings += 1

    def _fill(self, operands: tuple[Any, ...]) -> bool:
        """Copy what is elsewhere into the recorded memory; False where it does not fit."""
        given = list(_tensors(operands))
        fits = len(given) == len(self._held) and all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(given, self._held)
        )
        keys = [o for o in operands if isinstance(o, Key)]
        if not fits or keys != [o for o in self._operands if isinstance(o, Key)]:
            return False
        moved = [(h, g) for h, g in zip(self._held, given) if h is not g and h.data_ptr() != g.data_ptr()]
        if moved:
            with torch.no_grad():
                for held, tensor in moved:
                    held.copy_(tensor, non_blocking=True)
        return True


def _to_device(host: Tensor, device: torch.device) -> Tensor:
    return (host.pin_memory() if device.type != host.device.type else host).to(device, non_blocking=True)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor of the device in a nest of operands; positions in the data set stay on the host."""
    if isinstance(value, DeviceBatch):
        value = (value.images, value.labels, value.weight, value.draws)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for name in sorted(value):
            yield from _tensors(value[name])
    elif isinstance(value, (tuple, list)) and not isinstance(value, Key):
        for part in value:
            yield from _tensors(part)
