"""Ready-made kernels that a backend may offer as its own; torch-free, like every table of kernels."""

from __future__ import annotations

from vitcore.backend import Kernel, World
from vitcore.step.ir import Op

_FN = "vitcore.runtime.multi_tensor"


def _fused(op: Op, world: World) -> bool | str:
    kind = op.args[1].ty.args[0]
    return kind in ("sgdm", "adamw") or f"torch has no fused function of {kind} with such a flag"


# For devices that have torch's multi-tensor functions and fused optimizers.
MULTI_TENSOR: tuple[Kernel, ...] = (
    Kernel("opt.update", "torch_fused", f"{_FN}:torch_fused", _fused),
    Kernel("grads.clip", "foreach", f"{_FN}:clip_foreach", tier="algebraic"),
    Kernel("grads.norm", "foreach", f"{_FN}:norm_foreach", tier="algebraic"),
)

# The leaf `compiled`, for backends that name a `compiler`. The backward is autograd's, through what was compiled.
COMPILED: tuple[Kernel, ...] = (
    Kernel("model.forward", "compiled", "vitcore.runtime.compiled:forward", tier="numerics"),
    Kernel("model.apply", "compiled", "vitcore.runtime.compiled:apply", tier="numerics"),
)
