"""`habana_frameworks.torch.core`: marks. In eager mode they do nothing, and say so once when the library is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitcore_hpusim.tensor import HpuTensor


def is_lazy() -> bool:
    """utils/internal.py; the mode is the process's."""
    return HpuTensor.recorder.lazy


def mark_step(device_str: str = "", sync: bool = False) -> None:
    """core/step_closure.py: submit what was recorded, then call the closures."""
    if is_lazy():
        HpuTensor.recorder.mark()


def mark_if_lazy(device_str: str = "") -> None:
    """core/step_closure.py, `_mark_step_if_lazy`: what every fused optimizer calls."""
    mark_step(device_str)


def iter_mark_step(device_str: str = "") -> None:
    """core/step_closure.py: launches nothing."""


def add_step_closure(closure: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
    """core/step_closure.py: called on the host after the next submission; in eager mode never."""
    if is_lazy():
        HpuTensor.recorder.closures.append(lambda: closure(*args))
