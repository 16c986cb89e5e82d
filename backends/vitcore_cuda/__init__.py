"""The cuda backend: NVIDIA GPUs, fused optimizers, autocast bf16, nccl."""

from __future__ import annotations

from vitcore.api import MULTI_TENSOR, Backend, Kernel, hookimpl

CUDA = Backend(
    name="cuda",
    device="cuda",
    probe="vitcore_cuda.probe:missing",
    open="vitcore_cuda.device:choose",
    wait="torch.cuda:synchronize",
    collective="nccl",
    precisions=("fp32", "bf16"),
    prefetch=True,
    pinned=True,
    rank=20,
    about="NVIDIA GPUs",
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """NVIDIA GPUs."""
    return [CUDA]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """torch's own fused optimizers and multi-tensor norms."""
    return MULTI_TENSOR if backend == "cuda" else ()
