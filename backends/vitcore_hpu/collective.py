"""The reference's reductions, claimed so that the text says how they flush: see `vitcore_hpu.kernels`.

They are sums, divided afterwards: HCCL has no average (bridge: backend/helpers/collective_utils.cpp:40). They are of float32,
as any other type but bfloat16 is turned into it and waited for (bridge: HF/distributed/hccl/process_group_hccl_base.cpp:412).
No barrier is called: one has no timeout here (same file, :1785).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vitcore.runtime.runtime import Runtime


def grads_flat(rt: Runtime, grads: list[Tensor], group: str) -> list[Tensor]:
    """The mean of the gradients over the ranks, as one buffer."""
    out: list[Tensor] = getattr(rt, "grads_all_reduce__flat")(grads, group)  # noqa: B009  (made by the runtime)
    return out


def metrics_flat(rt: Runtime, metrics: dict[str, Any], group: str) -> dict[str, Any]:
    """The accumulators' sums over the ranks."""
    out: dict[str, Any] = getattr(rt, "metrics_all_reduce__flat")(metrics, group)  # noqa: B009
    return out
