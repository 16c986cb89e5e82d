"""Ready-made kernels that a backend may offer as its own; torch-free, like every table of kernels."""

from __future__ import annotations

from vitcore.backend import Kernel, World
from vitcore.runtime.reference import several_ranks
from vitcore.step.ir import Op

_FN = "vitcore.runtime.multi_tensor"


def _fused(op: Op, world: World) -> bool | str:
    kind = op.args[1].ty.args[0]
    return kind in ("sgdm", "adamw") or f"torch has no fused function of {kind} with such a flag"


def _not_by_one(op: Op, world: World) -> bool | str:
    return op.attrs.get("by") != "1/1" or "the factor is 1"


# For devices that have torch's multi-tensor functions and fused optimizers.
MULTI_TENSOR: tuple[Kernel, ...] = (
    Kernel("opt.update", "torch_fused", f"{_FN}:torch_fused", _fused),
    Kernel("grads.clip", "foreach", f"{_FN}:clip_foreach", tier="algebraic"),
    Kernel("grads.norm", "foreach", f"{_FN}:norm_foreach", tier="algebraic"),
)

# In place of the first of those where steps are recorded: the learning rate is a number on the device.
CAPTURABLE = Kernel("opt.update", "capturable", f"{_FN}:torch_capturable", _fused)

# For devices that keep bundles in one buffer each (`Backend.flat`), besides those above: forward and backward in one, with
# gradients made where they are needed, and one kernel for all that is done alike to all of them.
BUFFERS: tuple[Kernel, ...] = (
    Kernel("model.grad", "autograd", "vitcore.runtime.fused_leaf:grad"),
    Kernel("grads.zero", "buffer", "vitcore.runtime.fused_leaf:zero"),
    Kernel("grads.scale", "buffer", f"{_FN}:scale", _not_by_one),
    Kernel("grads.all_reduce", "buffer", f"{_FN}:all_reduce", several_ranks),
    Kernel("opt.init", "buffer", f"{_FN}:init"),
    Kernel("ema.init", "buffer", f"{_FN}:average"),
    Kernel("ema.update", "buffer", f"{_FN}:update_average", tier="algebraic"),
)

# In place of the first of those where launching a kernel for each gradient costs more than it saves.
AT_ONCE = Kernel("model.grad", "autograd", "vitcore.runtime.fused_leaf:grad_at_once")

# The leaf `compiled`, for backends that name a `compiler`. The backward is autograd's, through what was compiled.
COMPILED: tuple[Kernel, ...] = (
    Kernel("model.forward", "compiled", "vitcore.runtime.compiled:forward", tier="numerics"),
    Kernel("model.apply", "compiled", "vitcore.runtime.compiled:apply", tier="numerics"),
)


def compiled_if_asked(why: str, *, at_once: bool = False) -> tuple[Kernel, ...]:
    """The leaf `compiled` for backends that keep bundles in buffers, asked for by `--compile`; `why` not by itself."""
    here = "vitcore.runtime.compiled"
    grad = "grad_at_once" if at_once else "grad"
    return (
        Kernel("model.grad", "compiled", f"{here}:{grad}", tier="numerics", opt_in=why),
        Kernel("model.apply", "compiled", f"{here}:apply", tier="numerics", opt_in=why),
    )
