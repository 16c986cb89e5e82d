"""The host-read guard: inside a region nothing may wait for the device (the run-time twin of rule V7)."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitcore.errors import VitcoreError

Rule = Callable[[Any, Any], bool]
"""Of an op's arguments and keywords: whether it waits for the device."""

_HOST = torch.Generator().device.type
TORCH = str(Path(torch.__file__).parent)
# What torch itself says must know values: `.item()`, `float(t)`, `if t:`, and for a shape `nonzero` or `unique`.
_TAGS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})


class HostReadError(VitcoreError):
    """Something inside a region waited for the device."""


def _always(args: Any, kwargs: Any) -> bool:
    return True


def _by_mask(args: Any, kwargs: Any) -> bool:
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _without_size(args: Any, kwargs: Any) -> bool:
    return kwargs.get("output_size") is None


def _to_host(args: Any, kwargs: Any) -> bool:
    to = kwargs.get("device")
    return to is not None and torch.device(to).type == _HOST and args[0].device.type != _HOST


def _into_host(args: Any, kwargs: Any) -> bool:
    return args[0].device.type == _HOST and args[1].device.type != _HOST


_aten = torch.ops.aten
# Ops whose tags say too little or too much.
_RULES: dict[Any, Rule] = {
    _aten.equal.default: _always,
    _aten.is_nonzero.default: _always,
    _aten.allclose.default: _always,
    _aten.index.Tensor: _by_mask,
    _aten.index_put.default: _by_mask,
    _aten.index_put_.default: _by_mask,
    _aten.repeat_interleave.Tensor: _without_size,
    _aten._to_copy.default: _to_host,
    _aten.copy_.default: _into_host,
}
# Waits that never reach the dispatcher where the tensor is on the host already.
HOST_METHODS = {torch.Tensor.tolist: "tolist", torch.Tensor.__repr__: "repr"}


@functools.cache
def _rule(func: Any) -> Rule | None:
    return _RULES.get(func) or (None if _TAGS.isdisjoint(func.tags) else _always)


def reads_device(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call of this op, which a dispatch mode sees, waits for the device."""
    rule = _rule(func)
    return rule is not None and rule(args, kwargs)


def _refuse(where: str, name: str) -> NoReturn:
    raise HostReadError(
        f"{where}: {name} reads a device value on the host ({culprit()}); keep it on the device, or "
        "read it in a log step"
    )


class _NoHostMethods(TorchFunctionMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST_METHODS:
            _refuse(self.where(), HOST_METHODS[func])
        return func(*args, **(kwargs or {}))


class _NoHostReads(TorchDispatchMode):
    def __init__(self, where: Callable[[], str]) -> None:
        super().__init__()
        self.where = where

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if reads_device(func, args, kwargs):
            _refuse(self.where(), str(func).removeprefix("aten."))
        return called(func, args, kwargs)


def called(func: Any, args: Any, kwargs: Any) -> Any:
    """The op, called under a dispatch mode.

    A device that records wraps what is made on it for functionalisation, which torch keeps from it under a mode: the tensor
    could then not be written into.
    """
    if kwargs.get("device") is None:
        return func(*args, **kwargs)
    key = torch._C.DispatchKey.Functionalize
    before = torch._C._dispatch_tls_is_dispatch_key_excluded(key)
    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(key, before)


def culprit(*guards: str) -> str:
    """The innermost line of Python that is neither torch's nor this file's, nor of the files of other guards."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(TORCH) and frame.filename not in (__file__, *guards):
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
