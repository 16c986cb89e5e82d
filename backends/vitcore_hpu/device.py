"""Taking the card, in the order in which each failure has a name of its own."""

from __future__ import annotations

import importlib.util
import os
import sys

from vitcore.api import VitcoreError
from vitcore_hpu.probe import NO_LIBRARY, other_mode


def acquire() -> None:
    """Import the vendor's library, and prove by an allocation that the card is ours.

    What the library raises is explained by `vitcore_hpu.failures`. The allocation also proves that the library's autocast is
    there: without it torch.autocast("hpu") is silently nothing, but no tensor is made on the device either.
    """
    lazy = os.environ["PT_HPU_LAZY_MODE"] == "1"
    # A simulator's library stands in sys.modules and in no folder.
    if "habana_frameworks" not in sys.modules and importlib.util.find_spec("habana_frameworks") is None:
        raise VitcoreError(NO_LIBRARY)
    import habana_frameworks.torch.core  # noqa: F401  (registers the device)
    import torch

    if wrong := other_mode(lazy):
        raise VitcoreError(wrong)
    # An AttributeError here says that the library did not register its device.
    if not torch.hpu.is_available():  # type: ignore[attr-defined]
        raise VitcoreError(
            "habana_frameworks is loaded and shows no Gaudi card; check hl-smi, HABANA_VISIBLE_MODULES and that the driver is of "
            "the plugin's release, or pass the device into the container"
        )
    torch.zeros(1, device="hpu").item()
    from vitcore_hpu.optim import sgd

    sgd()  # it marks when it is made, so it is made while nothing is pending
