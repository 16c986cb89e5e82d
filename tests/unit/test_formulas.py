"""Named formulas of kernels: printed, read back, and refused where nobody knows them."""

from __future__ import annotations

import pytest

from vitcore.backend import Backend, Kernel
from vitcore.errors import VitcoreError
from vitcore.formulas import FORMULAS
from vitcore.runtime.codegen import source
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.lowering import Lowering
from vitcore.step.ops import OPS
from vitcore.step.pipeline import lower
from vitcore.step.text import parse
from vitcore.step.verify import verify_module


def lowered(op: str, variant: str) -> str:
    kernel = Kernel(op, "fused", "nobody:has_it", variant=variant)
    module = lower(build(StepSpec(name="t", optimizer="adamw")), Lowering(Backend("b", "d"), (kernel, *REFERENCE)))
    for program in verify_module(module).programs:
        assert parse(str(program)) == program
        assert "variant" not in source(program), "what is printed is not passed to the kernel"
    return str(module)


@pytest.mark.parametrize("name", FORMULAS)
def test_it_stands_in_the_text_beside_the_implementation(name: str) -> None:
    op = FORMULAS[name].op
    assert op in OPS and FORMULAS[name].says
    (line,) = (line for line in lowered(op, name).splitlines() if f"= {op} " in line)
    assert "impl=fused" in line and f"variant={name}" in line


def test_without_one_nothing_is_printed() -> None:
    assert "variant" not in lowered("opt.update", "")


@pytest.mark.parametrize(("op", "variant", "words"), [
    ("opt.update", "adamw_eps_before_corection", r"did you mean 'adamw_eps_before_correction'\?"),
    ("opt.update", "gelu_tanh", "no named formula of that op; known: adamw_eps_before_correction"),
    ("grads.clip", "fast", "declares the variant 'fast', which is no named formula of that op; known: none"),
])  # fmt: skip
def test_one_that_nobody_knows_is_refused(op: str, variant: str, words: str) -> None:
    with pytest.raises(VitcoreError, match=words):
        lowered(op, variant)
