"""How fast this machine multiplies matrices, measured now: what a step's rate is a share of."""

from __future__ import annotations

import time

import torch

from vitcore.backend import Backend, resolve

# Sides of the square product: large enough that a device is full of it, small enough for a processor to take milliseconds.
SIDES = {"host": 2048, "device": 8192}
NARROW = {"bf16": torch.bfloat16, "bf16-casts": torch.bfloat16}


class Product:
    """A square product in the type that a precision multiplies in, on a backend's device."""

    def __init__(self, backend: Backend, precision: str, side: int = 0) -> None:
        device = torch.device(backend.device)
        self.side = side or SIDES["host" if device.type == "cpu" else "device"]
        dtype = NARROW.get(precision, torch.float32)
        generator = torch.Generator().manual_seed(0)
        draws = (torch.randn(self.side, self.side, generator=generator).to(device, dtype) for _ in range(2))
        self.a, self.b = draws
        self.out = torch.empty_like(self.a)
        self.mark = resolve(backend.mark) if backend.mark else lambda: None
        self.wait = resolve(backend.wait) if backend.wait else lambda: None
        self.operations = 2 * self.side**3
        for _ in range(3):
            self.step()
        self.wait()

    def step(self) -> None:
        """One product, into memory that is there already."""
        torch.mm(self.a, self.b, out=self.out)
        self.mark()

    def rate(self, rounds: int = 7) -> float:
        """Operations a second, the median of a few rounds."""
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            self.step()
            self.wait()
            times.append(time.perf_counter() - start)
        return self.operations / sorted(times)[len(times) // 2]
