"""What the tests of the step compiler share: the shipped backends and one way to lower for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from vitcore.backend import Backend, World
from vitcore.plan import choose_kernels
from vitcore.plugins import load_plugins
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Module
from vitcore.step.lowering import Lowering, Pass
from vitcore.step.pipeline import lower
from vitcore.step.text import parse
from vitcore.step.verify import verify


@pytest.fixture(scope="session")
def backends() -> dict[str, Backend]:
    """The backends of this repository, by name."""
    return {name: load_plugins().backend(name) for name in ("cpu", "cuda", "hpu-lazy", "hpu-eager")}


@pytest.fixture(scope="session")
def lowered(backends: dict[str, Backend]) -> Callable[..., Module]:
    """`lowered(backend, precision=, world=, **fields of StepSpec)`: the sealed module of the shipped step."""

    def make(backend: str, precision: str = "fp32", world: int = 1, **spec: object) -> Module:
        kernels, _ = choose_kernels(load_plugins(), load_plugins().backend(backend))
        lowering = Lowering(backends[backend], kernels, precision=precision, world=World(world))
        return lower(build(StepSpec(**{"name": "recipe", "optimizer": "sgdm", **spec})), lowering)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def rewritten() -> Callable[..., str]:
    """`rewritten(pass, text, lazy=, siblings=, **fields of Backend and Lowering)`: one pass, text in, text out."""

    def make(each: Pass, text: str, *, lazy: bool = False, siblings: Sequence[str] = (), **options: Any) -> str:
        split_after = frozenset(options.pop("split_after", ()))
        precisions = options.pop("precisions", ("fp32",))
        mark = "toy:mark" if lazy else None
        toy = Backend(name="toy", device="toy", mark=mark, split_after=split_after, precisions=precisions)
        lowering = Lowering(toy, options.pop("kernels", ()), **options)
        lowering.module = Module("toy", {}, (), (parse(text), *map(parse, siblings)))
        return str(verify(each.run(verify(parse(text)), lowering)))

    return make
