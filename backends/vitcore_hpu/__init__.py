"""The Habana Gaudi backends, hpu-lazy and hpu-eager, written against the vendor's published source.

Facts with their source: `bridge:` is HabanaAI/gaudi-pytorch-bridge v1.19.0, `HF/` in it python_packages/habana_frameworks/torch.
The mode is an environment variable that is read once, when the library is first imported (bridge: HF/__init__.py:50), and its
default has changed over time, so it is always set; `mark_step` launches what was recorded (bridge: HF/core/step_closure.py).
Not run on a Gaudi card.
"""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import replace
from pathlib import Path

from vitcore.api import Backend, Flag, Kernel, hookimpl

_BOTH = {
    # The library computes GELU by its tanh formula also where torch is asked for the exact one, unless this is 0
    # (bridge: scripts/env_flags.yaml:367, hpu_ops/backend/gelu_gen.cpp:41). A model that says tanh is computed so anyway.
    "PT_HPU_FORCE_TANH_FOR_GELU": "0",
}

HPU_LAZY = Backend(
    name="hpu-lazy",
    device="hpu",
    env={
        "PT_HPU_LAZY_MODE": "1",
        **_BOTH,
        # Without it there is no metric `recipe_cache`, by which launches are counted (bridge: HF/hpu/metrics/metrics.py).
        "PT_HPU_ENABLE_CACHE_METRICS": "1",
        # Collectives that are part of a graph would not flush, as the kernels here say that they do (bridge:
        # scripts/env_flags.yaml:355).
        "PT_HPU_ENABLE_LAZY_COLLECTIVES": "0",
    },
    open="vitcore_hpu.device:acquire",
    probe="vitcore_hpu.probe:missing_lazy",
    mark="habana_frameworks.torch.core:mark_step",
    wait="habana_frameworks.torch.hpu:synchronize",
    counters="vitcore_hpu.counters:counts",
    failure="vitcore_hpu.failures:explain",
    split_after=frozenset({"model.forward", "model.backward"}),
    collective="hccl",
    precisions=("fp32", "bf16"),
    rank=30,
    about="Habana Gaudi, lazy mode (needs the vendor's own torch)",
)

HPU_EAGER = Backend(
    name="hpu-eager",
    device="hpu",
    env={"PT_HPU_LAZY_MODE": "0", **_BOTH},
    open="vitcore_hpu.device:acquire",
    probe="vitcore_hpu.probe:missing_eager",
    wait="habana_frameworks.torch.hpu:synchronize",
    counters="vitcore_hpu.counters:eager_counts",
    failure="vitcore_hpu.failures:explain",
    compiler="hpu_backend",
    collective="hccl",
    precisions=("fp32", "bf16"),
    rank=31,
    about="Habana Gaudi, eager mode and torch.compile",
)


def eager_first() -> bool:
    """Whether the vendor's own default is eager mode: from version 1.21 of the plugin on, and where none is installed."""
    try:
        version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("habana-torch-plugin"))
    except importlib.metadata.PackageNotFoundError:
        return True
    return version is None or (int(version[1]), int(version[2])) >= (1, 21)


@hookimpl
def vitcore_backends() -> list[Backend]:
    """Gaudi in its two modes; a process has one of them. `--backend auto` asks the one first that the vendor would take."""
    return [HPU_LAZY, replace(HPU_EAGER, rank=HPU_LAZY.rank + (1 if eager_first() else -1))]


@hookimpl
def vitcore_kernels(backend: str) -> tuple[Kernel, ...]:
    """The vendor's fused kernels."""
    from vitcore_hpu.kernels import kernels

    return kernels(lazy=backend == HPU_LAZY.name) if backend in (HPU_LAZY.name, HPU_EAGER.name) else ()


@hookimpl
def vitcore_flags() -> list[Flag]:
    """The original recipe's flags that speak of the device."""
    from vitcore_hpu.flags import FLAGS

    return FLAGS


@hookimpl
def vitcore_recipes() -> list[tuple[str, str]]:
    """The original recipe under its maker's name."""
    return [(path.stem, str(path)) for path in sorted((Path(__file__).parent / "recipes").glob("*.toml"))]
