"""Making `hpu` a device of this process: torch's device guard, factories, the conversions that name it, `torch.hpu`."""

from __future__ import annotations

import os
import types
from typing import Any

import torch
from torch import Tensor

from vitcore_hpusim import autocast
from vitcore_hpusim.recorder import HOST, Recorder, undisturbed
from vitcore_hpusim.tensor import DEVICE, UNDER, HpuTensor, is_here, wrap

_FACTORIES = ("arange", "arange.start", "arange.start_step", "zeros", "ones", "full", "rand", "randn", "randint", "randint.low",
              "randperm", "eye", "linspace")  # fmt: skip
_libraries: list[Any] = []


def make(*, lazy: bool) -> Recorder:
    """Make the device; a process has one, in one mode."""
    if hasattr(HpuTensor, "recorder"):
        return HpuTensor.recorder
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    _setup_privateuseone_for_python_backend(UNDER)
    # The backward on the thread that asks for it: what is still wanted at a flush must not depend on when another thread lets
    # go of it, and the line that asks for a backward is then on the stack.
    torch.autograd.set_multithreading_enabled(False)
    recorder = Recorder(lazy=lazy, wrap=HpuTensor)
    recorder.unsupported = frozenset(filter(None, os.environ.get("HPUSIM_UNSUPPORTED", "").split(",")))
    # GELU by its tanh formula, whatever is asked, unless this is 0 (scripts/env_flags.yaml:367).
    recorder.tanh_gelu = os.environ.get("PT_HPU_FORCE_TANH_FOR_GELU", "1") != "0"
    HpuTensor.recorder = recorder
    _register_factories(recorder)
    autocast.register()
    _patch_conversions()
    if not hasattr(torch, "hpu"):
        torch._register_device_module("hpu", module(recorder))
    return recorder


def _register_factories(recorder: Recorder) -> None:
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
        with undisturbed():
            kind = {
                "dtype": dtype or torch.get_default_dtype(),
                "memory_format": memory_format or torch.contiguous_format,
            }
            return wrap(recorder, torch.empty(size, **kind))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
        with undisturbed():
            return wrap(recorder, torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))

    def factory(name: str) -> Any:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")

        def make(*args: Any, **kwargs: Any) -> Any:
            kept = {k: v for k, v in kwargs.items() if k not in ("layout", "pin_memory")} | {"device": HOST}
            with recorder.lock:
                if recorder.lazy:
                    return recorder.note(op, args, kept)
                with undisturbed():
                    return wrap(recorder, op(*args, **kept))

        return make

    for key in ("HPU", "PrivateUse1"):
        library.impl("empty.memory_format", empty, key)
        library.impl("empty_strided", empty_strided, key)
        for name in _FACTORIES:
            library.impl(name, factory(name), key)


def _patch_conversions() -> None:
    """Where torch is told a device by name, in C++, `hpu` becomes the device that is simulated."""
    to, tensor, as_tensor = Tensor.to, torch.tensor, torch.as_tensor

    def here(value: Any) -> Any:
        named = isinstance(value, torch.device) or (isinstance(value, str) and value.partition(":")[0] == "hpu")
        return torch.device(UNDER, 0) if named and is_here(value) else value

    def moved(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return to(self, *map(here, args), **{k: here(v) for k, v in kwargs.items()})

    def made(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        return tensor(data, **kwargs).to(device) if is_here(device) else tensor(data, device=device, **kwargs)

    def taken(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        return (
            as_tensor(data, dtype=dtype).to(device) if is_here(device) else as_tensor(data, dtype=dtype, device=device)
        )

    Tensor.to, torch.tensor, torch.as_tensor = moved, made, taken  # type: ignore[method-assign, assignment]
    Tensor.hpu = lambda self, *args, **kwargs: moved(self, DEVICE, *args, **kwargs)  # type: ignore[attr-defined]


def module(recorder: Recorder) -> types.ModuleType:
    """`torch.hpu`, as far as the bridge documents it (habana_frameworks/torch/hpu/__init__.py and memory.py)."""
    made = types.ModuleType("torch.hpu", "SIMULATED by hpusim: no Gaudi card is behind this.")

    def memory_stats(device: Any = None) -> dict[str, int]:
        used, peak = recorder.ledger.in_use, max(recorder.ledger.peak, recorder.ledger.in_use)
        names = ("NumAllocs", "NumFrees", "ActiveAllocs", "MaxAllocSize", "TotalSystemAllocs", "TotalSystemFrees",
                 "TotalActiveAllocs")  # fmt: skip
        return {"Limit": 0, "InUse": used, "MaxInUse": peak, **dict.fromkeys(names, 0)}

    def reset_peak(device: Any = None) -> None:
        recorder.ledger.peak = 0

    functions: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "init": lambda: None,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "SIMULATED by hpusim",
        "synchronize": lambda: recorder.flush("synchronize"),
        "manual_seed": torch.default_generator.manual_seed,
        "manual_seed_all": lambda seed: None,
        "is_bf16_supported": lambda: True,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "memory_stats": memory_stats,
        "memory_allocated": lambda device=None: memory_stats()["InUse"],
        "max_memory_allocated": lambda device=None: memory_stats()["MaxInUse"],
        "reset_peak_memory_stats": reset_peak,
    }
    for name, function in functions.items():
        setattr(made, name, function)
    return made
