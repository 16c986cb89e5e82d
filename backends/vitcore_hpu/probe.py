"""Whether a Gaudi card can be used here, asked without importing torch or the vendor's library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

NO_LIBRARY = (
    "habana_frameworks is not installed; install the vendor's software stack: its driver, its own build of torch (lazy mode "
    "accepts no other) and habana-torch-plugin of the same release"
)


def missing_lazy() -> str | None:
    """None where a card can be used in lazy mode, else what is missing and what to do."""
    return _library() or other_mode(lazy=True) or _stock_torch() or _card()


def missing_eager() -> str | None:
    """None where a card can be used in eager mode, else what is missing and what to do."""
    return _library() or other_mode(lazy=False) or _card()


def there(name: str) -> bool:
    """Whether the module is loaded or can be; a simulator's is loaded and lies in no folder."""
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _library() -> str | None:
    # find_spec of a submodule raises where the parent is missing, so the parent is asked first.
    if not there("habana_frameworks"):
        return NO_LIBRARY
    if not there("habana_frameworks.torch"):
        return "habana_frameworks has no torch part; install habana-torch-plugin of the driver's release"
    return None


def other_mode(lazy: bool) -> str | None:
    """None unless the vendor's library is loaded in the other mode, as by torch's autoload: a process has one mode (bridge:
    HF/__init__.py:50)."""
    if "habana_frameworks.torch" not in sys.modules:
        return None
    internal = sys.modules.get("habana_frameworks.torch.utils.internal")
    # The library reads the variable once and keeps its answer (bridge: HF/utils/internal.py:25); unset means another mode
    # in other releases, so it counts as the wrong one.
    loaded_lazy = internal.is_lazy() if internal else os.environ.get("PT_HPU_LAZY_MODE") == "1"
    known = internal is not None or "PT_HPU_LAZY_MODE" in os.environ
    if known and loaded_lazy == lazy:
        return None
    said = ("lazy" if loaded_lazy else "eager") if known else "unknown"
    return (
        f"habana_frameworks is loaded already in {said} mode, and a process has one mode; start another, and put this first: "
        f"import os; os.environ['PT_HPU_LAZY_MODE'] = '{int(lazy)}'"
    )


def _stock_torch() -> str | None:
    """Lazy mode accepts the vendor's own torch alone, which is known by its local version (bridge: HF/__init__.py:41;
    `hpu` on the main branch)."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return "torch is missing; install the vendor's own build of it"
    if version.partition("+")[2].startswith(("git", "hpu")):
        return None
    return (
        f"torch {version} is not the vendor's own build, and lazy mode accepts no other; use --backend hpu-eager, or install "
        "the torch of the vendor's software stack"
    )


def _card() -> str | None:
    if not any(Path("/dev").glob("accel/accel*")) and not any(Path("/dev").glob("hl[0-9]*")):
        return (
            "no Gaudi card (/dev/accel/accel* or /dev/hl*); check the driver with hl-smi, or pass the device into the "
            "container"
        )
    return None
