"""Taking the card, in the order in which each failure has a name of its own.

What the import changes in torch (bridge: HF/core/torch_overwrites.py), and why none of it reaches vitcore:
`init_process_group` (:214) takes fewer keywords, `vitcore.runtime.distributed` gives only those it takes. In lazy mode
`torch.save` (:392) rebuilds what it writes; checkpoints are safetensors and JSON. Modules get hooks and attributes (:167), and
parameters may change class (bridge: HF/core/weight_sharing.py), so they are told by isinstance alone and the model is moved
before anything holds its parameters. In lazy mode int64 becomes int32 on its way to the device (bridge:
scripts/env_flags.yaml:584): labels are the only int64 that a step sends, and class numbers fit.
"""

from __future__ import annotations

import os

from vitcore.api import VitcoreError
from vitcore_hpu.probe import NO_LIBRARY, other_mode, there


def acquire() -> None:
    """Import the vendor's library, and prove by an allocation that the card is ours.

    What the library raises is explained by `vitcore_hpu.failures`. The allocation also proves that the library's autocast is
    there: without it torch.autocast("hpu") is silently nothing, but no tensor is made on the device either.
    """
    lazy = os.environ["PT_HPU_LAZY_MODE"] == "1"
    if not there("habana_frameworks"):
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
