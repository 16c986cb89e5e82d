"""Copies beside the step: what waits for what, by streams that keep an order and run nothing."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from vitcore_cuda import streams

from vitcore.data.batch import Batch
from vitcore.runtime.reference.data import DeviceBatch, put


class Fake:
    """torch.cuda with two streams: what is put into each is a line of its list."""

    class Stream:
        def __init__(self, name: str = "copies") -> None:
            self.name, self.did = name, list[str]()

        def record_event(self) -> str:
            self.did.append(f"event {len(self.did)}")
            return self.did[-1]

        def wait_event(self, event: str) -> None:
            self.did.append(f"wait for {event}")

    def __init__(self) -> None:
        self.compute = self.now = Fake.Stream("compute")

    def current_stream(self) -> Fake.Stream:
        return self.now

    @contextmanager
    def stream(self, stream: Fake.Stream) -> Iterator[None]:
        self.now, before = stream, self.now
        yield
        self.now = before


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()

    def copy(rt: Any, batch: Batch, pixels: str) -> DeviceBatch:
        fake.now.did.append("copy")
        return put(rt, batch, pixels)

    monkeypatch.setattr(streams, "reference", copy)
    return fake


def batch() -> Batch:
    images, rows = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4), torch.ones(1)
    return Batch(images, torch.zeros(1, dtype=torch.long), rows, torch.arange(1), {"own": rows})


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """Which memory was said to be in use by which stream."""
    found: list[tuple[int, str]] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda t, s: found.append((t.data_ptr(), s.name)), raising=False)
    return found


RT: Any = types.SimpleNamespace(device=torch.device("cpu"))


def test_a_step_waits_for_its_own_batch_and_not_for_the_next(fake: Fake, used: list) -> None:
    copies = streams.Copies(fake)
    copies.put(RT, batch(), "", ahead=True)  # init: the first step's
    assert fake.compute.did == []
    copies.put(RT, batch(), "", ahead=True)  # in the first step: the second's
    copies.put(RT, batch(), "", ahead=True)
    assert copies.stream.did == ["copy", "event 1", "copy", "event 3", "copy", "event 5"]
    assert fake.compute.did == ["wait for event 1", "wait for event 3"]


def test_a_batch_of_an_evaluation_is_waited_for_at_once(fake: Fake, used: list) -> None:
    copies = streams.Copies(fake)
    copies.put(RT, batch(), "", ahead=True)
    copies.put(RT, batch(), "", ahead=False)
    assert fake.compute.did == ["wait for event 3", "wait for event 1"]


@pytest.mark.parametrize("pixels", ["", "bytes"])
def test_all_that_was_copied_is_the_references_and_said_to_be_in_use(fake: Fake, used: list, pixels: str) -> None:
    made, plain = streams.Copies(fake).put(RT, batch(), pixels, ahead=True), put(RT, batch(), pixels)
    assert {p for p, name in used if name == "compute"} == {
        t.data_ptr() for t in (made.images, made.labels, made.weight, made.draws["own"])
    }
    assert torch.equal(made.images, plain.images) and made.images.dtype == plain.images.dtype


def test_each_runtime_has_a_stream_of_its_own(fake: Fake, used: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.Copies.__init__, "__defaults__", (fake,))

    class Rt:
        device = torch.device("cpu")

    first, second = Rt(), Rt()
    for rt in (first, second, first):
        streams.put(rt, batch(), ahead="yes")  # type: ignore[arg-type]
    assert streams._copying[first] is not streams._copying[second]  # type: ignore[index]
    assert streams._copying[first].stream.did.count("copy") == 2  # type: ignore[index]
