"""Attention by the vendor's fused kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from habana_frameworks.torch.hpex.kernels import FusedSDPA
from torch import Tensor

from vitcore.api import VitcoreError

if TYPE_CHECKING:
    from vitcore.runtime.runtime import Runtime


def fused_sdpa(
    rt: Runtime, q_BHND: Tensor, k_BHND: Tensor, v_BHND: Tensor, *, p: float = 0.0, site: int = 0, dropout: Any = None
) -> Tensor:
    """Scaled dot-product attention over all tokens, (B, H, N, D); no dropout of the probabilities."""
    if p > 0.0:
        raise VitcoreError(
            f"fused_sdpa: attention dropout of {p} would be drawn from the device's own generator, so a run would depend on the "
            "device; use the reference attention with --disable_kernel fused_sdpa, or a model without attention dropout"
        )
    # By position alone, as it is an autograd.Function: mask, dropout, causal, scale, softmax mode, recompute. The mode "fast"
    # with recompute and gradients is for causal attention (bridge: HF/hpex/kernels/FusedSDPA.py).
    out: Tensor = FusedSDPA.apply(q_BHND, k_BHND, v_BHND, None, 0.0, False, q_BHND.shape[-1] ** -0.5, "None", None)
    return out
