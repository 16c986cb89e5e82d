"""What the vendor's library, or torch without it, means by an exception: what is wrong, the rule, the remedy. Torch-free.

Sources: the bridge's files as they are named below; what torch says without the library was seen on stock torch 2.13.
"""

from __future__ import annotations

import re

_NOT_LOADED = (
    "habana_frameworks did not register itself with torch, so torch has no device of that name; torch and habana-torch-plugin "
    "must be of one release of the vendor's software: reinstall both, and check with python -c 'import habana_frameworks.torch'"
)
_STOCK = (
    "stock torch is refused in lazy mode, which accepts the vendor's own build alone; use --backend hpu-eager, or install the "
    "torch of the vendor's software stack"
)

# (type of the exception, its text, what to say); groups of the text are filled in. The first that matches speaks.
_TABLE: tuple[tuple[str, str, str], ...] = (
    # bridge: HF/__init__.py:43
    ("AssertionError", r"major/minor PyTorch version (\S+) differs from run-time (\S+?)\.?$",
     "habana-torch-plugin was built for torch {0} and torch {1} is installed, where major and minor version must agree; install "
     "the torch and the plugin of one release of the vendor's software"),
    # bridge: HF/__init__.py:48, and :41 where the version of torch has no local part
    ("AssertionError", r"Stock PyTorch version .* not supported in Lazy mode", _STOCK),
    ("AttributeError", r"'NoneType' object has no attribute 'startswith'", _STOCK),
    # bridge: backend/synapse_helpers/device.cpp:220
    ("", r"Wrong PT plugin library loaded in the system\. Expected (\w+), got (\w+)",
     "the mode was changed after habana_frameworks was imported: its library is that of {1} mode and PT_HPU_LAZY_MODE asks for "
     "{0}; a process has one mode: start another, and set the variable first"),
    # bridge: HF/__init__.py:51, ctypes.CDLL
    ("OSError", r"(lib\S+\.so\S*?)[:,]? cannot open shared object file",
     "a library of the vendor's driver is missing ({0}), without which habana_frameworks cannot be loaded; install the driver "
     "and runtime of the plugin's release, and put their folder on LD_LIBRARY_PATH"),
    ("OSError", r"(lib(?:habana|Synapse|SynapseAI)\S*.*)",
     "a library of habana_frameworks cannot be loaded ({0}); install driver, runtime and plugin of one release"),
    # bridge: backend/synapse_helpers/device.cpp
    ("", r"Device acquire failed\. No devices found",
     "the driver shows no Gaudi card; check hl-smi and HABANA_VISIBLE_MODULES, or pass the device into the container"),
    # bridge: logging.h:540; the card belongs to one process
    ("", r"synStatus=(\d+).*(?:Device acquire failed|already acquired)",
     "the Gaudi card cannot be acquired (synStatus={0}): a card is one process's alone, and another, perhaps one left over, "
     "may hold it; see hl-smi for its number, end it, or choose another card with HLS_MODULE_ID"),
    # torch: the entry point of habana_frameworks raised (bridge: python_packages/setup.py:91)
    ("RuntimeError", r"Failed to load the backend extension",
     "habana_frameworks fails while torch loads it by itself, so torch cannot be imported; set TORCH_DEVICE_BACKEND_AUTOLOAD=0 "
     "to see the cause, then repair or uninstall habana-torch-plugin"),
    # torch without the library
    ("AttributeError", r"module 'torch' has no attribute 'hpu'", _NOT_LOADED),
    ("AttributeError", r"'Tensor' object has no attribute 'is_hpu'", _NOT_LOADED),
    ("ModuleNotFoundError", r"No module named 'torch\.hpu'", _NOT_LOADED),
    ("RuntimeError", r"torch has no module of `hpu`|module registered as 'torch\.hpu'", _NOT_LOADED),
    ("InvalidBackend", r"Invalid backend: 'hpu_backend'",
     "torch.compile knows no 'hpu_backend': the library registers it in eager mode alone, when it is imported; use --backend "
     "hpu-eager with the vendor's plugin, or leave the leaf out with --disable_kernel compiled"),
    ("", r"Unknown backend type hccl|Invalid backend: 'hccl'|Unknown c10d backend type HCCL",
     "torch.distributed knows no 'hccl': habana_frameworks registers it when it is imported; install habana-torch-plugin of "
     "the driver's release, or start one process"),
    ("ModuleNotFoundError", r"No module named 'habana_frameworks",
     "habana_frameworks is not whole; reinstall habana-torch-plugin of the driver's release"),
)  # fmt: skip


def explain(exception: BaseException) -> str | None:
    """A sentence with the remedy; None where the exception, and what caused it, is not known."""
    seen: set[int] = set()
    found: BaseException | None = exception
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        text = " ".join(str(found).split())
        for kind, pattern, said in _TABLE:
            if kind and kind not in {c.__name__ for c in type(found).__mro__}:
                continue
            if match := re.search(pattern, text, re.I):
                return said.format(*match.groups())
        found = found.__cause__ or found.__context__
    return None
