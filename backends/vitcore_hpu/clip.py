"""`grads.clip` by the vendor's fused norm and scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from habana_frameworks.torch.hpex.normalization import FusedClipNorm
from torch import Tensor

if TYPE_CHECKING:
    from vitcore.runtime.hyper import Hyper
    from vitcore.runtime.runtime import Runtime

# The class freezes its bound when it is made (bridge: HF/hpex/normalization/FusedClipNorm.py); the last one is kept.
_made: WeakKeyDictionary[Runtime, tuple[float, FusedClipNorm]] = WeakKeyDictionary()


def fused_clip_norm(rt: Runtime, grads: list[Tensor], hyper: Hyper) -> tuple[list[Tensor], Tensor]:
    """Scale the gradients in place so that their global L2 norm is at most the bound; also the norm before."""
    own, bound = rt.own_params(), hyper["max_norm"]
    params, mine = [own[i] for i in rt.trained], [grads[i] for i in rt.trained]
    made = _made.get(rt)
    if made is None or made[0] != bound:
        made = _made[rt] = bound, FusedClipNorm(params, bound)
    # Gradients are read from the parameters; isinstance(p, Parameter) holds for them, but the library may have changed their
    # class (bridge: HF/core/weight_sharing.py).
    for p, g in zip(params, mine):
        p.grad = g
    try:
        norm: Tensor = made[1].clip_norm(params)
    finally:
        for p in params:
            p.grad = None
    return grads, norm.reshape(())
