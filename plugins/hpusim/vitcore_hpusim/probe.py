"""Whether the simulator can run here, asked without importing torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# What it needs of torch that torch does not promise, and the file in which it stands.
PRIVATE = {"_setup_privateuseone_for_python_backend": "utils/backend_registration.py"}
NEEDS = (
    "torch.utils.backend_registration._setup_privateuseone_for_python_backend",
    "torch.Tensor._make_wrapper_subclass with _extra_dispatch_keys",
    "torch._C._ExcludeDispatchKeyGuard",
    "torch.utils._python_dispatch._disable_current_modes",
)


def real_library() -> bool:
    """Whether the vendor's own library can be imported. A stand-in that is installed already is not it."""
    import sys

    loaded = sys.modules.get("habana_frameworks")
    if loaded is not None:
        return not hasattr(loaded, "__simulator__")
    return importlib.util.find_spec("habana_frameworks") is not None


def missing() -> str | None:
    """None where it can run, else why not and what to do."""
    if real_library():
        return (
            "the vendor's habana_frameworks is installed here, and a simulated one would hide it; leave --simulate out, or use "
            "another environment"
        )
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return "torch is missing; pip install torch"
    root = Path(next(iter(spec.submodule_search_locations)))
    for name, file in PRIVATE.items():
        path = root / file
        if not path.is_file() or f"def {name}(" not in path.read_text(encoding="utf-8"):
            return f"this torch has no {name} in torch/{file}, by which the simulated device is made; install torch 2.11 or newer"
    return None
