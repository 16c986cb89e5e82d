"""Guards for anyone's tests: what a piece of code asks of the device, counted and bounded.

with compile_budget(exe), no_fallbacks(exe):
    for step in range(100):
        state = exe.step(state, hyper)

with no_host_reads(), no_hidden_copies():
    logits = model(images)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.doctor.flushes import predicted
from vitcore.errors import VitcoreError
from vitcore.runtime.executable import Executable, Stats
from vitcore.runtime.guards import HostReadError, culprit, no_host_reads

__all__ = ["Counted", "GuardError", "HostReadError", "compile_budget", "counted", "flushes_as_predicted", "no_fallbacks",
           "no_hidden_copies", "no_host_reads"]  # fmt: skip


class GuardError(VitcoreError):
    """Code asked more of the device than a guard allows."""


@dataclass
class Counted:
    """What an executable counted between entering `counted` and leaving it; before that, nothing."""

    difference: Stats | None = None

    def __getattr__(self, name: str) -> int:
        if self.difference is None:
            raise VitcoreError(f"counted: {name} is not known before the block has ended; ask after it")
        count: int = getattr(self.difference, name)
        return count


@contextmanager
def counted(exe: Executable) -> Iterator[Counted]:
    """The growth of every count of `exe.stats()` over the block: marks, flushes, compiles, host_reads, bytes_reduced ..."""
    before, out = exe.stats(), Counted()
    yield out
    after = exe.stats()
    out.difference = Stats(**{f.name: getattr(after, f.name) - getattr(before, f.name) for f in fields(Stats)})


def _counts(exe: Executable, what: str) -> None:
    if what not in exe.rt.device_counters():
        raise VitcoreError(
            f"backend {exe.rt.backend.name!r} counts no {what}; name a function that does in its `counters`"
        )


@contextmanager
def compile_budget(exe: Executable, most: int = 0) -> Iterator[None]:
    """GuardError where the block compiles more than `most` graphs; VitcoreError where the device counts none."""
    _counts(exe, "compiles")
    with counted(exe) as seen:
        yield
    if seen.compiles > most:
        raise GuardError(f"{seen.compiles} graphs were compiled, {most} are allowed; look for shapes that change, for state that "
                         "appears late, and for Python numbers that are constants of a graph")  # fmt: skip


@contextmanager
def no_fallbacks(exe: Executable) -> Iterator[None]:
    """GuardError where an op of the block fell back to the host; VitcoreError where the device does not count them."""
    _counts(exe, "fallbacks")
    with counted(exe) as seen:
        yield
    if seen.fallbacks:
        raise GuardError(f"{seen.fallbacks} ops fell back to the host; write them with ops that the device records")


@contextmanager
def flushes_as_predicted(exe: Executable, *, steps: int = 0, evaluated: int = 0) -> Iterator[None]:
    """GuardError where the block, of so many training steps and evaluated batches, flushes more or less often than the
    programs' texts say."""
    said = steps * predicted(exe.module["train"].ops) + evaluated * predicted(exe.module["eval"].ops)
    with counted(exe) as seen:
        yield
    if seen.flushes != said or seen.marks > said:
        raise GuardError(f"the texts say {said} flushes, {seen.flushes} were counted ({seen.marks} marks); see check C6 of the "
                         "conformance kit")  # fmt: skip


class _NoHiddenCopies(TorchDispatchMode):
    def __init__(self, most_bytes: int) -> None:
        super().__init__()
        self.most_bytes = most_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in _COPIES and isinstance(out, Tensor):
            source = args[1] if name == "copy_" else args[0]
            size = source.numel() * source.element_size()
            if size > self.most_bytes:
                kind = _kind(source, out)
                raise GuardError(
                    f"{name} copies {size} bytes, {kind} ({culprit(__file__)}); {self.most_bytes} are allowed"
                )
        return out


_COPIES = frozenset({"_to_copy", "clone", "copy_"})


def _kind(source: Tensor, out: Tensor) -> str:
    if source.device != out.device:
        return f"from {source.device} to {out.device}"
    if source.dtype != out.dtype:
        return f"from {source.dtype} to {out.dtype}"
    return "to another layout" if source.stride() != out.stride() else "as it is"


@contextmanager
def no_hidden_copies(most_bytes: int = 0) -> Iterator[None]:
    """GuardError, with the Python line, where code inside copies a tensor of more than `most_bytes`: between devices or
    dtypes, into another layout (`contiguous`, `reshape` of a transposed one), or by `clone` and `copy_`."""
    with _NoHiddenCopies(most_bytes):
        yield
