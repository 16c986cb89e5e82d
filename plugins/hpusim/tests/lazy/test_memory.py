"""Bytes: what is alive, the most that a program needs, and that nothing is kept."""

from __future__ import annotations

import gc
from typing import Any

import torch
from conftest import on_card

KILO = 1024 * 4  # bytes of a tensor of 1,024 float32


def test_the_peak_of_a_program_is_counted_by_storage(card: Any) -> None:
    gc.collect()
    before = card.ledger.in_use
    a = torch.zeros(1024).to("hpu")
    card.ledger.peak = 0
    b = (a + 1).view(32, 32).t()  # one new storage, however many views
    c = (b * 2).sum()  # another, which is gone when the sum is made
    card.mark()
    assert card.ledger.peak - before == 3 * KILO + 4
    del c
    gc.collect()
    assert card.ledger.in_use - before == 2 * KILO


def test_stats_are_those_that_the_library_documents(card: Any) -> None:
    stats = torch.hpu.memory_stats()  # type: ignore[attr-defined]
    assert {"Limit", "InUse", "MaxInUse", "NumAllocs", "NumFrees", "ActiveAllocs"} <= stats.keys()
    assert torch.hpu.max_memory_allocated() >= torch.hpu.memory_allocated() > 0 or stats["InUse"] == 0  # type: ignore[attr-defined]


def test_nothing_of_a_step_is_kept(card: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2)).to("hpu")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(on_card(4, 8)), torch.tensor([0, 1, 0, 1]).to("hpu")).backward()
        optimizer.step()
        card.mark()

    def held() -> tuple[int, ...]:
        gc.collect()
        tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
        return len(card._programs), len(card._steps), card.ledger.in_use, tensors

    for _ in range(3):
        step()
    before = held()
    for _ in range(20):
        step()
    assert held() == before
