"""Whether a Gaudi card can be used here, asked without importing torch or the vendor's library."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def missing() -> str | None:
    """None where library and card are present, else what is missing and what to install."""
    # find_spec of a submodule raises where the parent is missing, so the parent is asked first.
    if importlib.util.find_spec("habana_frameworks") is None:
        return (
            "habana_frameworks is not installed; install the vendor's software stack: its driver, its own build of "
            "torch (lazy mode accepts no other) and habana-torch-plugin of the same release"
        )
    if importlib.util.find_spec("habana_frameworks.torch") is None:
        return "habana_frameworks has no torch part; install habana-torch-plugin of the driver's release"
    if not any(Path("/dev").glob("accel/accel*")) and not any(Path("/dev").glob("hl[0-9]*")):
        return (
            "no Gaudi card (/dev/accel/accel* or /dev/hl*); check the driver with hl-smi, or pass the device into the "
            "container"
        )
    return None
