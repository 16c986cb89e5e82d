"""Whether an NVIDIA GPU can be used here, asked of the driver without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util


def missing() -> str | None:
    """None where the driver shows a GPU, else what is missing and what to install."""
    if importlib.util.find_spec("torch") is None:
        return "torch is missing; pip install torch"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "the NVIDIA driver (libcuda.so.1) is not installed; install it, or pass the GPU into the container"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the NVIDIA driver shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None
