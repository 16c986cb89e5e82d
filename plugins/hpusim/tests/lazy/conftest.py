"""The simulated card in lazy mode; a process has it in one mode, so these tests run apart from the eager ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from vitcore_hpusim.install import install
from vitcore_hpusim.recorder import Recorder
from vitcore_hpusim.tensor import HpuTensor

from vitcore.backend import Backend
from vitcore.runtime.events import Event


@pytest.fixture(scope="session")
def made() -> Recorder:
    torch.set_num_threads(1)
    install(Backend(name="hpu-lazy", device="hpu", env={"PT_HPU_LAZY_MODE": "1"}))
    return HpuTensor.recorder


@pytest.fixture
def card(made: Recorder) -> Iterator[Recorder]:
    """The device with nothing recorded and nothing said."""
    made.flush("before the test")
    made.events.clear()
    yield made
    made.unsupported, made.random_marks = frozenset(), 0.0


@pytest.fixture
def causes(card: Recorder) -> Callable[[], list[str]]:
    """The causes of the flushes that launched something, since the last call."""

    def seen() -> list[str]:
        found: list[Event] = [e for e in card.events if e.ops]
        card.events.clear()
        return [e.cause for e in found]

    return seen


def on_card(*shape: int, **how: Any) -> torch.Tensor:
    """Random numbers on the card."""
    return torch.randn(*shape, **how).to("hpu")
