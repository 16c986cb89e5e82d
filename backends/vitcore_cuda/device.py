"""Which GPU this process uses, and how that multiplies float32."""

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


_now = ""


def arithmetic(precision: str) -> str:
    """Set torch's switches, which are the process's: torch's own defaults multiply in full and convolve in TF32."""
    global _now
    short = precision == "tf32"
    if precision != _now:
        import torch

        # The older names, which every torch that is supported has; those of 2.9 are not to be mixed with them.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = short
        _now = precision
    if short:
        return "products and convolutions of float32: TF32, with 10 bits of mantissa"
    return "products and convolutions of float32: in full, no TF32"
