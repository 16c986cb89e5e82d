"""The cuda backend: NVIDIA GPUs, fused optimizers, autocast bf16, nccl."""

from __future__ import annotations

from vitcore.api import Backend, Kernel, hookimpl

CUDA = Backend(
    name="cuda",
    device="cuda",
    probe="vitcore_cuda.probe:missing",
    open="vitcore_cuda.device:choose",
    wait="torch.cuda:synchronize",
    collective="nccl",
    precisions=("fp32", "bf16"),
    rank=20,
    about="NVIDIA GPUs",
)

KERNELS = (
    Kernel("opt.update", "torch_fused", "vitcore.runtime.multi_tensor:torch_fused"),
    Kernel("grads.clip", "foreach", "vitcore.runtime.multi_tensor:clip_foreach", tier="algebraic"),
    Kernel("grads.norm", "foreach", "vitcore.runtime.multi_tensor:norm_foreach", tier="algebraic"),
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """NVIDIA GPUs."""
    return [CUDA]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """torch's own fused optimizers and multi-tensor norms."""
    return KERNELS if backend == "cuda" else ()
