"""What the Gaudi backends claim, as data; the functions are imported when a program that names them is opened.

Flushes are counted as the device counts them, so only where something is pending. In lazy mode each of the vendor's fused
classes marks around its work, in eager mode none does. All of them are (before, inside, after).
"""

from __future__ import annotations

from vitcore.api import COMPILED, Kernel, Op, World

_HERE = "vitcore_hpu"

# The update is prepared by recorded ops; the class flushes those, then its own; what follows is left to the region's mark.
# (bridge: HF/hpex/optimizers/FusedSGD.py, around each parameter group; HF/hpex/optimizers/FusedAdamW.py, before each group
# and after the step. There is one group, whatever the recipe's are: see `vitcore_hpu.optim`.)
_UPDATE = (0, 2, 0)
# Before: what made the gradients. After: its own work. (bridge: HF/hpex/normalization/FusedClipNorm.py)
_CLIP = (1, 0, 1)
# A collective that is no part of a graph flushes what it waits for; the division by the number of ranks follows it. (bridge:
# HF/distributed/hccl/ProcessGroupHCCL.cpp:470, habana_lazy/view_utils.cpp:1196)
_REDUCE = (0, 1, 0)
_NONE = (0, 0, 0)


def _of(kind: str):
    def when(op: Op, world: World) -> bool | str:
        return op.args[1].ty.has(kind) or f"the state is not of kind {kind}"

    return when


def _several_ranks(op: Op, world: World) -> bool | str:
    return world.size > 1 or "one rank has nothing to reduce"


def kernels(*, lazy: bool) -> tuple[Kernel, ...]:
    """The kernels of one mode.

    A second form of attention, `scale_before_matmul`, needs no kernel: the reference scales q before the product, which is
    the order of the original recipe on this device (Model-References 1.6.1, ViT/models/modeling.py:84). `--disable_kernel
    fused_sdpa` selects it.
    """
    update, clip = (_UPDATE, _CLIP) if lazy else (_NONE, _NONE)
    fused = (
        Kernel("opt.update", "fused_sgd", f"{_HERE}.optim:fused_sgd", _of("sgdm"), update, tier="algebraic"),
        Kernel(
            "opt.update", "fused_adamw", f"{_HERE}.optim:fused_adamw", _of("adamw"), update,
            variant="adamw_eps_before_correction", tier="numerics",
        ),
        Kernel(
            "grads.clip", "fused_clip_norm", f"{_HERE}.clip:fused_clip_norm", None, clip, tier="algebraic",
            opt_in="it flushes twice a step where the reference is a part of the update's graph" if lazy else "",
        ),
        Kernel("attention", "fused_sdpa", f"{_HERE}.attention:fused_sdpa", tier="numerics"),
    )  # fmt: skip
    if not lazy:
        # Compiling and recording exclude each other (optimum-habana: optimum/habana/transformers/training_args.py:664).
        return (*fused, *COMPILED)
    reduce = f"{_HERE}.collective"
    return (
        *fused,
        Kernel("grads.all_reduce", "flat_hccl", f"{reduce}:grads_flat", _several_ranks, _REDUCE),
        Kernel("metrics.all_reduce", "flat_hccl", f"{reduce}:metrics_flat", _several_ranks, _REDUCE),
    )
