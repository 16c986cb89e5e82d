"""Which GPU this process uses."""

from __future__ import annotations

import os

from vitcore.api import VitcoreError


def choose() -> None:
    """Take the GPU of this process's local rank, as the launcher gives it."""
    import torch

    if not torch.cuda.is_available():
        raise VitcoreError(
            f"torch {torch.__version__} cannot use the GPU that the driver shows; install a torch built for CUDA "
            "(pip install torch, without the +cpu index)"
        )
    local = os.environ.get("LOCAL_RANK") or os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") or "0"
    if int(local) >= torch.cuda.device_count():
        raise VitcoreError(
            f"local rank {local} has no GPU: this machine shows {torch.cuda.device_count()}; start that many processes"
        )
    torch.cuda.set_device(int(local))
