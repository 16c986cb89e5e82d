"""The host-read guard: inside a region nothing may wait for the device (the run-time twin of rule V7)."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.errors import VitcoreError

_aten = torch.ops.aten
# `.item()`, `float(t)`, `if t:`; then what must know values to know a shape.
_READS = frozenset(
    {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default,
     _aten.equal.default, _aten.is_nonzero.default}
)  # fmt: skip
_TORCH = str(Path(torch.__file__).parent)


class HostReadError(VitcoreError):
    """Something inside a region waited for the device."""


class _NoHostReads(TorchDispatchMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READS or self._masks(func, args) or self._copies_to_host(func, args, kwargs or {}):
            name = str(func).removeprefix("aten.")
            raise HostReadError(
                f"{self.where()}: {name} reads a device value on the host ({_culprit()}); keep the value on the device, "
                "or read it in a log step"
            )
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _masks(func: Any, args: Any) -> bool:
        indexed = func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default)
        return indexed and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])

    @staticmethod
    def _copies_to_host(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        host = torch.Generator().device.type
        if func is _aten._to_copy.default:
            to = kwargs.get("device")
            return to is not None and torch.device(to).type == host and args[0].device.type != host
        return func is _aten.copy_.default and args[0].device.type == host and args[1].device.type != host


def _culprit() -> str:
    """The innermost line of Python that is neither torch's nor this file's."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(_TORCH) and frame.filename != __file__:
            return f"{frame.filename}:{frame.lineno}: {frame.line or frame.name}"
    return "called from torch itself"


@contextmanager
def no_host_reads(where: str | Callable[[], str] = "no_host_reads") -> Iterator[None]:
    """Raise `HostReadError`, naming the op and the Python line, where code inside waits for the device.

    It sees `.item()`, `float(t)`, `if t:`, `nonzero`, boolean-mask indexing and copies to the host, on any torch device,
    the host itself included (there a `.cpu()` copies nothing and is not seen).
    """
    with _NoHostReads(where if callable(where) else lambda: where):
        yield
