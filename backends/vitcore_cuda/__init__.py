"""The cuda backend: NVIDIA GPUs, narrow weights for bf16, fused attention by measurement, the step as one graph, nccl."""

from __future__ import annotations

from vitcore.api import (
    AT_ONCE,
    BUFFERS,
    CAPTURABLE,
    MULTI_TENSOR,
    Backend,
    Keeps,
    Kernel,
    Op,
    World,
    compiled_if_asked,
    hookimpl,
)

CUDA = Backend(
    name="cuda",
    device="cuda",
    probe="vitcore_cuda.probe:missing",
    open="vitcore_cuda.device:choose",
    wait="torch.cuda:synchronize",
    memory="torch.cuda:mem_get_info",
    compiler="inductor",
    # 8 % of it are a minute, at 400 TFLOP/s.
    compile_pays=3e17,
    compiles="model",
    collective="nccl",
    precisions=("fp32", "tf32", "bf16"),
    arithmetic="vitcore_cuda.device:arithmetic",
    narrow_weights=True,
    flat=True,
    tune="vitcore_cuda.attention:measure",
    capture="vitcore_cuda.graphs:capture",
    prefetch=True,
    pinned=True,
    rank=20,
    about="NVIDIA GPUs",
)


def _narrow(op: Op, world: World) -> bool | str:
    return op.args[0].ty.kind == "weights" or "the weights are not narrow"


_HERE = "vitcore_cuda"
# q, k and v as the projection made them, the result as the next one reads it, and a number a row of scores.
_FLASH = Keeps(3, 0, 1)
_FP8 = "products of 8 bits are of fewer digits than bf16's, and how fast they are was not measured"
# In the order in which they are asked where nothing was measured.
KERNELS = (
    Kernel("self_attention", "cudnn", f"{_HERE}.attention:cudnn", _narrow, tier="numerics", keeps=_FLASH),
    Kernel("self_attention", "flash", f"{_HERE}.attention:flash", _narrow, tier="numerics", keeps=_FLASH),
    Kernel("self_attention", "efficient", f"{_HERE}.attention:efficient", tier="numerics", keeps=_FLASH),
    Kernel("attention", "fused", f"{_HERE}.attention:fused", tier="numerics"),
    Kernel("data.put", "beside", f"{_HERE}.streams:put"),
    CAPTURABLE,
    Kernel("model.grad", "fp8", f"{_HERE}.fp8:grad_at_once", _narrow, tier="numerics", opt_in=_FP8),
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """NVIDIA GPUs."""
    return [CUDA]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """Fused attention, copies beside the step, and torch's own fused optimizers and multi-tensor norms on whole buffers."""
    compiled = compiled_if_asked(
        "it takes a minute before the first step, which short runs do not win back", at_once=True
    )
    return (*KERNELS, *compiled, AT_ONCE, *BUFFERS, *MULTI_TENSOR) if backend == CUDA.name else ()
