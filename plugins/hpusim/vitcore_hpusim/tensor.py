"""The tensor of the simulated device, and how its ops are noted, carried out at once, or make the device work.

How a device is had without C++: torch's own device guard for backends in Python makes PrivateUse1 a device of which the autograd
engine knows; the tensor's `.device` says hpu, and its dispatch keys hold AutocastHPU, so that torch.autocast("hpu") reaches it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._C import DispatchKey

from vitcore_hpusim.flushing import aten, needs_values
from vitcore_hpusim.recorder import HOST, Recorder, Slot

UNDER = "hpusim"
"""What torch's core calls the device; people and `.device` say hpu."""
DEVICE = torch.device("hpu", 0)
_KEYS = torch._C.DispatchKeySet(DispatchKey.AutocastHPU)
_SAME = frozenset({aten.detach.default, aten.alias.default, aten.lift_fresh.default})
_GELU = frozenset({aten.gelu.default, aten.gelu_backward.default})
_INT32 = torch.iinfo(torch.int32)


class HpuTensor(Tensor):
    """A tensor of the simulated card: shapes at once, values after a flush."""

    recorder: ClassVar[Recorder]
    _slot: Slot

    @staticmethod
    def __new__(cls, slot: Slot) -> HpuTensor:
        meta = slot.meta
        made: HpuTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta.shape,
            strides=meta.stride,
            dtype=meta.dtype,
            device=torch.device(UNDER, 0),
            _extra_dispatch_keys=_KEYS,
        )
        made._slot = slot
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """hpu:0."""
        return DEVICE

    @property
    def is_hpu(self) -> bool:
        """As the bridge's tensors say."""
        return True

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        value = self.recorder.read(self._slot, "copy to the host")
        return f"{value.__repr__()[:-1]}, device='hpu:0')"

    def tolist(self) -> Any:
        """The values, as Python numbers."""
        return self.recorder.read(self._slot, "copy to the host").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as for every device that is not the host."""
        if not force:
            raise TypeError("can't convert hpu:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                            "first.")  # fmt: skip
        return self.detach().cpu().numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _again, (self.detach().cpu(), self.requires_grad, isinstance(self, torch.nn.Parameter))

    def _get_data(self) -> Tensor:
        return self.detach()

    def _set_data(self, value: HpuTensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self._slot = value._slot

    data = property(_get_data, _set_data)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recorder = cls.recorder
        with recorder.lock:
            return _dispatch(recorder, op, args, dict(kwargs) if kwargs else {})


def _again(value: Tensor, requires_grad: bool, parameter: bool) -> Tensor:
    there = value.to(DEVICE)
    return torch.nn.Parameter(there, requires_grad) if parameter else there.requires_grad_(requires_grad)


def is_here(device: Any) -> bool:
    """Whether a device, or its name, is the simulated one."""
    return device is not None and torch.device(device).type in ("hpu", UNDER)


def wrap(recorder: Recorder, value: Tensor) -> HpuTensor:
    """A tensor of the device with a value."""
    return HpuTensor(recorder.own(value))


def narrowed(recorder: Recorder, value: Tensor) -> Tensor:
    """What arrives of a tensor of the host. The lazy bridge computes 64-bit integers in 32 bits and checks what it copies
    (scripts/env_flags.yaml, PT_HPU_ENABLE_VALID_DATA_RANGE_CHECK); the dtype that a tensor shows stays int64."""
    if recorder.lazy and value.dtype == torch.int64 and value.numel():
        low, high = int(value.min()), int(value.max())
        if low < _INT32.min or high > _INT32.max:
            raise RuntimeError(
                f"Error when trying to cast Long to Int, input values {low} to {high} exceed the range of Int"
            )
    return value


def _dispatch(recorder: Recorder, op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if op in _SAME:
        return HpuTensor(args[0]._slot)
    if op is aten._local_scalar_dense.default:
        recorder.counts.to_host += 1
        return recorder.read(args[0]._slot, "item").item()
    if op is aten._to_copy.default and kwargs.get("device") is not None and not is_here(kwargs["device"]):
        recorder.counts.to_host += 1
        kwargs = {k: v for k, v in kwargs.items() if k != "non_blocking"} | {"device": HOST}
        return op(recorder.read(args[0]._slot, "copy to the host"), **kwargs)
    if op is aten._to_copy.default and not isinstance(args[0], HpuTensor):
        return _upload(recorder, args[0], kwargs)
    if op is aten.copy_.default and not (isinstance(args[0], HpuTensor) and isinstance(args[1], HpuTensor)):
        return _copy_across(recorder, *args[:2])
    if recorder.tanh_gelu and op in _GELU:
        kwargs["approximate"] = "tanh"
    if recorder.unsupported:
        name = str(op).removeprefix("aten.")
        if name in recorder.unsupported or name.partition(".")[0] in recorder.unsupported:
            recorder.counts.fallbacks[name] += 1
            return _on_host(recorder, op, args, kwargs, f"fallback {op}")
    if needs_values(op, args):
        return _on_host(recorder, op, args, kwargs, f"shape depends on values: {op}")
    if recorder.lazy:
        return recorder.note(op, args, kwargs)
    return _on_host(recorder, op, args, kwargs, "")


def _upload(recorder: Recorder, value: Tensor, kwargs: dict[str, Any]) -> HpuTensor:
    recorder.counts.to_device += 1
    dtype = kwargs.get("dtype") or value.dtype
    copied = aten._to_copy.default(narrowed(recorder, value), dtype=dtype)
    return wrap(recorder, copied)


def _copy_across(recorder: Recorder, to: Tensor, source: Tensor) -> Tensor:
    if not isinstance(to, HpuTensor):
        assert isinstance(source, HpuTensor)
        recorder.counts.to_host += 1
        to.copy_(recorder.read(source._slot, "copy to the host"))
        return to
    recorder.counts.to_device += 1
    if recorder.is_used(to._slot):
        recorder.flush("copy from the host into a tensor that is waited for")
    assert to._slot.value is not None
    to._slot.value.copy_(narrowed(recorder, source))
    return to


def _on_host(recorder: Recorder, op: Any, args: Any, kwargs: dict[str, Any], cause: str) -> Any:
    """Carry an op out now, on the values."""
    if recorder.lazy:
        recorder.flush(cause)

    def value(each: Any) -> Any:
        if isinstance(each, HpuTensor):
            return each._slot.value
        if isinstance(each, (list, tuple)):
            return [value(x) for x in each]
        if isinstance(each, Tensor) and each.dim() and not recorder.lazy:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found hpu:0 and {each.device}")
        return HOST if isinstance(each, torch.device) else each

    # Below torch's modes already: they have seen the op when it was called.
    out = op(*map(value, args), **{k: value(v) for k, v in kwargs.items()})
    if recorder.info(op).in_place:
        return kwargs.get("out", args[0] if args and recorder.info(op).returns else None)
    if isinstance(out, Tensor):
        return wrap(recorder, out)
    if isinstance(out, (tuple, list)):
        return tuple(wrap(recorder, t) if isinstance(t, Tensor) else t for t in out)
    return out
