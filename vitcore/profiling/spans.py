"""From a profiler's events to times by op: whose the host's time was, and who gave the device its work.

A kernel of the device belongs to the op in whose span it was launched, whichever thread launched it: autograd runs a backward
in threads of its own, which no annotation reaches, but while the program's op waits for it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.autograd import DeviceType

from vitcore.profiling.names import KNOWN, STEP


@dataclass
class Row:
    """One op's, or one torch function's: how often in all, and microseconds of the host and of the device."""

    name: str
    calls: int = 0
    host: float = 0.0
    device: float = 0.0


@dataclass
class Spans:
    """`ops` by name, in the order in which they first came, each without what ops inside it took; what no op has stands under
    `step`. `inside`: the functions of torch, by the op and by their name. `total`: microseconds from the first step's
    begin to the end of the last wait."""

    steps: int = 0
    total: float = 0.0
    ops: dict[str, Row] = field(default_factory=dict)
    inside: dict[tuple[str, str], Row] = field(default_factory=dict)

    @property
    def device(self) -> float:
        """Microseconds that the device computed or copied; 0 where it keeps no time of its own."""
        return sum(row.device for row in self.ops.values())


def read(events: Iterable[Any]) -> Spans:
    """Of `torch.profiler.profile.events()`, spans of `names.KNOWN` being annotations of one thread."""
    # An event of the device is not of the host; which type of device it is does not matter.
    events = [e for e in events if not _of_device(e)]
    spans = sorted((e for e in events if _is_span(e)), key=lambda e: (e.time_range.start, -e.time_range.end))
    found, parents = Spans(), _parents(spans)
    inside_step = [_inside_step(i, spans, parents) for i in range(len(spans))]
    for i, span in enumerate(spans):
        if not inside_step[i]:
            continue
        row = found.ops.setdefault(span.name, Row(span.name))
        row.calls += 1
        row.host += _length(span)
        parent = parents[i]
        if parent is not None:
            found.ops[spans[parent].name].host -= _length(span)
        found.steps += span.name == STEP
    if found.steps:
        begin = min(s.time_range.start for s in spans if s.name == STEP)
        found.total = max(s.time_range.end for i, s in enumerate(spans) if inside_step[i]) - begin
    starts = [s.time_range.start for s in spans]
    for event in events:
        _attribute(event, _innermost(event.time_range.start, starts, spans, parents), spans, inside_step, found)
    return found


def _of_device(event: Any) -> bool:
    return bool(event.device_type != DeviceType.CPU)


def _is_span(event: Any) -> bool:
    return event.is_user_annotation and event.name in KNOWN


def _length(event: Any) -> float:
    return float(event.time_range.end - event.time_range.start)


def _parents(spans: Sequence[Any]) -> list[int | None]:
    """For each span, in order of their begins, the one that it is in."""
    out: list[int | None] = []
    open_: list[int] = []
    for i, span in enumerate(spans):
        while open_ and spans[open_[-1]].time_range.end <= span.time_range.start:
            open_.pop()
        out.append(open_[-1] if open_ else None)
        open_.append(i)
    return out


def _inside_step(i: int | None, spans: Sequence[Any], parents: Sequence[int | None]) -> bool:
    """Whether a span is of a step: what an evaluation in between does is not."""
    while i is not None:
        if spans[i].name == STEP:
            return True
        i = parents[i]
    return False


def _innermost(time: float, starts: Sequence[float], spans: Sequence[Any], parents: Sequence[int | None]) -> int | None:
    at: int | None = bisect_right(starts, time) - 1
    if at is not None and at < 0:
        return None
    while at is not None and spans[at].time_range.end < time:
        at = parents[at]
    return at


def _attribute(event: Any, at: int | None, spans: Sequence[Any], inside_step: Sequence[bool], found: Spans) -> None:
    if at is None or not inside_step[at]:
        return
    # The device's copy of an annotation is no work of its own.
    device = sum(k.duration for k in event.kernels if not (event.is_user_annotation and k.name == event.name))
    found.ops[spans[at].name].device += device
    if event.is_user_annotation and event.name in KNOWN and not device:
        return
    row = found.inside.setdefault((spans[at].name, event.name), Row(event.name))
    row.calls += 1
    row.device += device
    row.host += 0.0 if _is_span(event) else event.self_cpu_time_total
