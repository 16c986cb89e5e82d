"""What the tests of the step compiler share: the shipped backends and one way to lower for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitcore.backend import Backend, World
from vitcore.plugins import load_plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Module
from vitcore.step.lowering import Lowering
from vitcore.step.pipeline import lower


@pytest.fixture(scope="session")
def backends() -> dict[str, Backend]:
    """The backends of this repository, by name."""
    return {name: load_plugins().backend(name) for name in ("cpu", "cuda", "hpu-lazy", "hpu-eager")}


@pytest.fixture(scope="session")
def lowered(backends: dict[str, Backend]) -> Callable[..., Module]:
    """`lowered(backend, precision=, world=, **fields of StepSpec)`: the sealed module of the shipped step."""

    def make(backend: str, precision: str = "fp32", world: int = 1, **spec: object) -> Module:
        kernels = [*load_plugins().kernels(backend), *REFERENCE]
        lowering = Lowering(backends[backend], kernels, precision=precision, world=World(world))
        return lower(build(StepSpec(**{"name": "recipe", "optimizer": "sgdm", **spec})), lowering)  # type: ignore[arg-type]

    return make
