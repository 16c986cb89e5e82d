"""A device that keeps a record: a fake one on the host, whose events a test plants."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch

from vitcore.backend import Backend, Simulator
from vitcore.doctor.diagnose import diagnose
from vitcore.doctor.examination import examine_executable
from vitcore.doctor.report import Report
from vitcore.doctor.running import Run
from vitcore.doctor.watch import Row
from vitcore.runtime.events import Event
from vitcore.runtime.reference import REFERENCE
from vitcore.testing.problem import Subject, hyper

MARK = "/somewhere/device.py:3: flush()"
CULPRIT = "/somewhere/model.py:7: x = x.nonzero()"


class Device(ModuleType):
    """A lazy device that computes at once: a mark is an event."""

    def __init__(self) -> None:
        super().__init__("vitcore_fakedev")
        self.record: list[Event] = []
        self.counted = {"flushes": 0, "compiles": 0, "cache_hits": 0, "fallbacks": 0}
        self.asked, self.disturbed, self.new = 0, False, False

    def mark(self) -> None:
        """Flush."""
        self.add(Event("mark", MARK, 12, self.new, 1000))
        self.new = False

    def add(self, event: Event) -> None:
        """What happened, in the record and in the counts."""
        self.record.append(event)
        self.counted["flushes"] += 1
        self.counted["compiles"] += event.compiled
        self.counted["fallbacks"] += event.cause.startswith("fallback")

    def events(self) -> list[Event]:
        """The record since the last call."""
        record, self.record = self.record, []
        return record

    def counters(self) -> dict[str, int]:
        """The counts; asking waits, and is in the record, as on devices whose marks are carried out by a thread. What is then
        flushed is counted too where `disturbed`."""
        self.asked += 1
        self.record.append(Event("synchronize", "/vendor/counters.py:3: synchronize()", 0, False, 0))
        self.counted["flushes"] += self.disturbed
        return dict(self.counted)


@pytest.fixture
def device() -> Iterator[Device]:
    sys.modules["vitcore_fakedev"] = device = Device()
    yield device
    del sys.modules["vitcore_fakedev"]


def examined(device: Device, plant: Callable[[str, int], None], *, records: bool = True) -> Report:
    """The report of a run in which `plant` is called after every kernel, with its op and how often it ran."""
    simulator = Simulator("fakesim", ("fake",), "builtins:print", events="vitcore_fakedev:events" if records else None)
    backend = Backend(name="fake", device=torch.Generator().device.type, mark="vitcore_fakedev:mark",
                      counters="vitcore_fakedev:counters", split_after=frozenset({"model.forward"}),
                      simulator=simulator)  # fmt: skip
    subject = Subject(backend, REFERENCE)
    seen: dict[str, int] = {}

    def wrap(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        op = name.partition("__")[0].replace("_", ".", 1)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            out = kernel(*args, **kwargs)
            seen[op] = seen.get(op, 0) + 1
            plant(op, seen[op])
            return out

        return wrapped

    exe = subject.open(subject.spec("sgdm", 2), wrap=wrap)
    return examine_executable(exe, lambda: subject.start(exe), hyper, 3)


def errors(report: Report) -> list[tuple[str, str]]:
    return [(f.what, f.where) for f in report.findings if f.severity == "error"]


def test_marks_are_what_the_text_says_and_asking_for_counts_is_not_blamed_on_the_step(device: Device) -> None:
    report = examined(device, lambda op, n: None)
    assert errors(report) == []
    assert report.run and report.run.records and report.title == "fake (SIMULATED by fakesim)"
    declared = [s for s in report.run.seen if s.phase == "step 2" and s.declared and s.ops]
    assert len(declared) == report.programs["train"].flushes
    assert {s.at for s in declared} >= {"rt.mark after forward"}
    assert report.as_dict()["run"]["peak_bytes"] == 1000


def test_a_fallback_and_a_read_in_the_record_are_found_with_the_records_line(device: Device) -> None:
    def plant(op: str, n: int) -> None:
        if op == "model.backward":
            device.add(Event("fallback aten.nonzero", CULPRIT, 3, False, 0))
        if op == "opt.update":
            device.add(Event("copy to the host", CULPRIT.replace("7", "9"), 3, False, 0))

    found = errors(examined(device, plant))
    assert any(
        "model.backward by autograd: fallback aten.nonzero" in what and where == CULPRIT for what, where in found
    )
    assert any(
        "opt.update by reference: flushes by copy to the host" in what and ":9:" in where for what, where in found
    )
    assert len(found) == 2, found


def test_a_graph_that_is_compiled_in_every_step_is_found_where_it_was_flushed(device: Device) -> None:
    def plant(op: str, n: int) -> None:
        device.new |= op == "opt.update"

    (found,) = errors(examined(device, plant))
    assert found[0] == (
        "a graph is compiled after warm-up, in every step: the graph that is flushed at rt.mark after update"
    )
    assert found[1] == MARK


def test_a_kernel_that_flushes_less_than_it_declares_is_a_warning() -> None:
    rows = [Row(f"step {n}", "train", 5, 4, 4, 0, 4, 0, 0) for n in (1, 2)]
    (found,) = diagnose(Run(rows=rows, counts=True), lazy=True)
    assert found.severity == "warning" and "the text says 5 flushes, the device counts 4" in found.what
    (found,) = diagnose(Run(rows=[replace(r, flushes=6) for r in rows], counts=True), lazy=True)
    assert found.severity == "error"


def test_a_device_that_is_flushed_by_asking_is_not_asked_within_a_step(device: Device) -> None:
    device.disturbed = True
    report = examined(device, lambda op, n: None, records=False)
    assert report.run and not report.run.fine and not report.run.seen
    assert "only those of host reads" in report.table()
    assert device.asked < 60, "twice a phase and a few times before"
