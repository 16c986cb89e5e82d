"""When the bridge works unasked: which ops need values at once (gaudi-pytorch-bridge v1.19.0, the places that say "step marker
due to ..." in habana_kernels/lazy_kernels.cpp and fallback_helper.h)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

aten = torch.ops.aten

# The shape of the result depends on values.
DATA_DEPENDENT = frozenset({
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.equal.default, aten.repeat_interleave.Tensor, aten.bincount.default,
})  # fmt: skip
_INDEXED = frozenset({aten.index.Tensor, aten.index_put_.default, aten.index_put.default})
# Changes of a tensor's own shape in place, which a recorded tensor cannot follow.
METADATA = frozenset(
    getattr(aten, name).default
    for name in ("unsqueeze_", "squeeze_", "t_", "transpose_", "resize_", "swapdims_")
    if hasattr(getattr(aten, name), "default")
)

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def needs_values(op: Any, args: tuple[Any, ...]) -> bool:
    """Whether the shape of the op's result depends on values, or its indices are a mask."""
    if op in DATA_DEPENDENT:
        return True
    return op in _INDEXED and any(isinstance(i, torch.Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def culprit() -> str:
    """The innermost line of Python that is neither torch's nor this package's, as file:line: text."""
    import linecache

    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, _HERE, "<frozen")):
            text = linecache.getline(name, frame.f_lineno).strip() or frame.f_code.co_name
            return f"{name}:{frame.f_lineno}: {text}"
        frame = frame.f_back  # type: ignore[assignment]
    return "called from torch itself"
