"""The cpu backend: eager torch, fused optimizers, autocast bf16, gloo."""

from __future__ import annotations

import importlib.util

from vitcore.api import MULTI_TENSOR, Backend, Kernel, hookimpl


def probe() -> str | None:
    """The processor is always there; torch may not be."""
    return None if importlib.util.find_spec("torch") else "torch is missing; pip install torch"


CPU = Backend(
    name="cpu",
    device="cpu",
    probe="vitcore_cpu:probe",
    collective="gloo",
    precisions=("fp32", "bf16", "bf16-casts"),
    rank=10,
    about="the processor, on any machine",
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """The cpu."""
    return [CPU]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """torch's own fused optimizers and multi-tensor norms."""
    return MULTI_TENSOR if backend == "cpu" else ()
