"""The host-read guard: inside a region nothing may wait for the device (the run-time twin of rule V7)."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.errors import VitcoreError

_aten = torch.ops.aten
# What torch itself says must know values: `.item()`, `float(t)`, `if t:`, and for a shape `nonzero` or `unique`.
_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
# What carries neither tag and waits all the same, and what carries one and need not wait.
_READS = frozenset({_aten.equal.default, _aten.is_nonzero.default, _aten.allclose.default})
_MAY_READ = frozenset({_aten.index.Tensor, _aten.repeat_interleave.Tensor})
# These never reach the dispatcher where the tensor is on the host already.
_METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.__repr__: "repr"}
_TORCH = str(Path(torch.__file__).parent)


class HostReadError(VitcoreError):
    """Something inside a region waited for the device."""


def _refuse(where: str, name: str) -> NoReturn:
    raise HostReadError(
        f"{where}: {name} reads a device value on the host ({_culprit()}); keep it on the device, or "
        "read it in a log step"
    )


class _NoHostMethods(TorchFunctionMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _METHODS:
            _refuse(self.where(), _METHODS[func])
        return func(*args, **(kwargs or {}))


class _NoHostReads(TorchDispatchMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._knows_values(func, kwargs) or self._masks(func, args) or self._copies_to_host(func, args, kwargs):
            _refuse(self.where(), str(func).removeprefix("aten."))
        return func(*args, **kwargs)

    @staticmethod
    def _knows_values(func: Any, kwargs: dict[str, Any]) -> bool:
        if func in _MAY_READ:
            return func is _aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        return func in _READS or not _TAGS.isdisjoint(func.tags)

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

    It sees `.item()`, `float(t)`, `if t:`, `.tolist()`, printing, `nonzero` and its like, boolean-mask indexing and
    copies to the host, on any torch device, the host itself included (there `.cpu()` and `.numpy()` copy nothing and
    are not seen).
    """
    say = where if callable(where) else lambda: where
    with _NoHostMethods(say), _NoHostReads(say):
        yield
