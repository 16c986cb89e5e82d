"""The cpu backend: eager torch, fused optimizers, narrow weights for bf16, attention by measurement, gloo."""

from __future__ import annotations

import importlib.util
import os
import shutil

from vitcore.api import BUFFERS, MULTI_TENSOR, Backend, Keeps, Kernel, Op, World, compiled_if_asked, hookimpl


def probe() -> str | None:
    """The processor is always there; torch may not be."""
    return None if importlib.util.find_spec("torch") else "torch is missing; pip install torch"


def missing_compiler() -> str | None:
    """Inductor writes C++ for the processor."""
    if shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++"):
        return None
    return "torch.compile needs a C++ compiler here, and neither CXX nor g++ is one that is found; install g++"


CPU = Backend(
    name="cpu",
    device="cpu",
    probe="vitcore_cpu:probe",
    open="vitcore_cpu.host:keep_memory",
    threads="vitcore_cpu.host:threads",
    memory="vitcore_cpu.memory:free_and_total",
    compiler="inductor",
    compiler_probe="vitcore_cpu:missing_compiler",
    # 3 % of it are the 50 s that compiling takes, at the 400 GFLOP/s of two cores with bf16.
    compile_pays=7e14,
    collective="gloo",
    precisions=("fp32", "bf16", "bf16-casts"),
    narrow_weights=True,
    flat=True,
    tune="vitcore_cpu.attention:measure",
    rank=10,
    about="the processor, on any machine",
)


def _narrow(op: Op, world: World) -> bool | str:
    return op.args[0].ty.kind == "weights" or "the weights are not narrow"


def _as_given(op: Op, world: World) -> bool | str:
    cast = {"autocast", "casts"} & op.attrs.keys()
    return not cast or "its own backward has none of the casts by which the model computes narrow"


_FN = "vitcore_cpu.attention"
# In the order in which they are asked where nothing was measured.
_ATTENTION = (
    Kernel("self_attention", "products", f"{_FN}:products", _narrow, tier="numerics", keeps=Keeps(3, 1)),
    Kernel(
        "self_attention", "products_padded", f"{_FN}:products_padded", _as_given, tier="numerics", keeps=Keeps(3, 1)
    ),
    Kernel("self_attention", "sdpa_fp32", f"{_FN}:sdpa_fp32", _narrow, tier="numerics", keeps=Keeps(4, 0, 1, 4)),
    Kernel("self_attention", "fused_forward", f"{_FN}:fused_forward", tier="numerics", keeps=Keeps(4, 0, 1)),
    Kernel("self_attention", "sdpa", f"{_FN}:sdpa", tier="algebraic", keeps=Keeps(3, 0, 1)),
)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """The cpu."""
    return [CPU]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """torch's own fused optimizers and multi-tensor norms on whole buffers, and ways of computing attention."""
    compiled = compiled_if_asked("it takes 50 s before the first step and wins 0 to 6 % of a step on a processor")
    return (*compiled, *_ATTENTION, *BUFFERS, *MULTI_TENSOR) if backend == CPU.name else ()
