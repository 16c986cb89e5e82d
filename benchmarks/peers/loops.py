"""What a loop is to the clock, and what all peers are given."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from benchmarks.peers import BOUND, PEERS
from benchmarks.rate import NARROW
from benchmarks.workload import RATE, Workload
from vitcore.errors import VitcoreError


class Loop(Protocol):
    """One loop, driven step by step."""

    name: str

    def step(self) -> None:
        """One optimizer step; it may return before the device is done."""

    def within(self, context: AbstractContextManager[Any]) -> None:
        """One step inside a context, in the thread in which the loop works."""

    def loss(self) -> float:
        """The loss of the last step, or the mean of those since it was last asked for; it waits for the device."""

    def close(self) -> None:
        """Give back what is held."""


@dataclass(frozen=True)
class Given:
    """What a peer trains: the same first parameters, batches and optimizer as everyone."""

    job: Workload
    device: torch.device
    batches: list[tuple[Tensor, Tensor]]
    """Pictures and labels, taken in turn."""
    folder: Path
    """Where the first parameters lie, as timm and transformers read them."""
    compiled: bool

    @property
    def autocast(self) -> bool:
        """Whether the peer works in bf16 by its autocast."""
        return self.job.precision in NARROW

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """The batch of a step, on the device; bytes become numbers there, as timm's prefetcher has it."""
        images, labels = (t.to(self.device, non_blocking=True) for t in self.batches[number % len(self.batches)])
        return images.float().div_(127.5).sub_(1) if images.dtype == torch.uint8 else images, labels

    def timm_model(self) -> torch.nn.Module:
        """timm's model of these sizes and parameters, by its own `create_model`."""
        import timm

        return timm.create_model(f"local-dir:{self.folder / 'timm'}", pretrained=True).to(self.device).train()

    def torch_optimizer(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        """torch's own, fused."""
        if self.job.optimizer == "adamw":
            return torch.optim.AdamW(params, lr=RATE, weight_decay=0.0, fused=True)
        return torch.optim.SGD(params, lr=RATE, momentum=0.9, fused=True)


class Plain:
    """A loop without a thread of its own, whose step keeps its loss on the device."""

    name = ""
    last: Tensor

    def step(self) -> None:
        """One optimizer step."""
        raise NotImplementedError

    def within(self, context: AbstractContextManager[Any]) -> None:
        """One step inside a context."""
        with context:
            self.step()

    def loss(self) -> float:
        """Of the last step."""
        return float(self.last)

    def close(self) -> None:
        """Drop model, gradients and optimizer."""
        vars(self).clear()


def builders(names: list[str], compiled: list[bool]) -> dict[str, Callable[[Given], Loop]]:
    """How each peer is built, by the name of its row. VitcoreError that names what is missing and how to install it."""
    found: dict[str, Callable[[Given], Loop]] = {}
    missing: dict[str, list[str]] = {}
    known = {**PEERS, **BOUND}
    for name in names:
        if name not in known:
            raise VitcoreError(f"--peers {name!r} is no peer; choose from {', '.join(known)}, all, or none")
        lacks = [p for p in known[name].packages if importlib.util.find_spec(p) is None]
        missing |= {name: lacks} if lacks else {}
    if missing:
        who = "; ".join(f"{name} needs {' and '.join(lacks)}" for name, lacks in missing.items())
        packages = sorted({p for lacks in missing.values() for p in lacks})
        others = [n for n in names if n not in missing]
        raise VitcoreError(f"{who}, which is not installed; {sys.executable} -m pip install {' '.join(packages)}, or leave "
                           f"it out by --peers {','.join(others) or 'none'}")  # fmt: skip
    for name in names:
        for how in compiled:
            found[f"{name}-compiled" if how else name] = importlib.import_module(known[name].module).build
    return found
