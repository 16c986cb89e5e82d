"""The pass manager: order, numbers, fuel, what can be disabled, and where plugins' passes stand."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from vitcore.backend import Backend, World
from vitcore.errors import VitcoreError
from vitcore.plugins import load_plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Module, Program
from vitcore.step.lowering import Fuel, Lowering, Pass, lowering_pass
from vitcore.step.pipeline import PIPELINE, fuel_from_env, lower, pipeline
from vitcore.step.verify import Illegal, verify_module

NAMES = [p.name for p in PIPELINE]
REQUIRED = ["begin_lowering", "choose_precision", "choose_implementations", "seal"]
SPEC = StepSpec(name="recipe", optimizer="sgdm")


def context(backend: Backend, fuel: int | None = None, precision: str = "fp32", world: int = 1) -> Lowering:
    kernels = [*load_plugins().kernels(backend.name), *REFERENCE]
    return Lowering(backend, kernels, precision=precision, world=World(world), fuel=Fuel(fuel))


def made_by(lowering: Lowering, passes: Iterable[Pass] = PIPELINE, spec: StepSpec = SPEC) -> Module:
    return lower(build(spec), lowering, [*passes])


def test_the_shipped_passes_are_these() -> None:
    assert NAMES == [
        "inline_single_repeat",
        "fold_zero_add",
        "begin_lowering",
        "prefetch",
        "keep_bytes",
        "skip_unread",
        "carry_zero_grads",
        "choose_precision",
        "narrow_weights",
        "rematerialise",
        "fuse_grad",
        "choose_implementations",
        "form_regions",
        "capture_step",
        "place_marks",
        "seal",
    ]
    assert [p.name for p in PIPELINE if p.required] == REQUIRED


def test_the_log_numbers_each_pass_and_says_what_it_changed(backends: dict[str, Backend]) -> None:
    lowering = context(backends["hpu-lazy"])
    made_by(lowering)
    assert len(lowering.log) == len(PIPELINE) * 5
    assert lowering.log[:5] == [
        "01 inline_single_repeat (exact) @init: unchanged",
        "01 inline_single_repeat (exact) @train: changed",
        "01 inline_single_repeat (exact) @eval: unchanged",
        "01 inline_single_repeat (exact) @log: unchanged",
        "01 inline_single_repeat (exact) @restore: unchanged",
    ]
    assert lowering.log[-1] == "16 seal (placement) @restore: changed"
    assert [title for title, _ in lowering.dumps] == [line for line in lowering.log if line.endswith(": changed")]
    assert lowering.dumps[-1][1].startswith("lowered:hpu-lazy @restore(")


def test_the_header_says_for_what_the_module_is_lowered(backends: dict[str, Backend]) -> None:
    module = made_by(context(backends["hpu-lazy"], precision="bf16", world=8))
    assert module.attrs == {**build(SPEC).attrs, "backend": "hpu-lazy", "precision": "bf16"}
    header = {"lazy": "yes", "precision": "bf16", "world": "8"}
    assert all(p.attrs == header and p.level == "lowered:hpu-lazy" for p in module.programs)


# ---- disabling ----


@pytest.mark.parametrize("name", ["inline_single_repeat", "fold_zero_add", "carry_zero_grads", "form_regions"])
def test_a_pass_is_disabled_by_name(name: str, backends: dict[str, Backend]) -> None:
    passes = pipeline(disabled=[name])
    assert [p.name for p in passes] == [n for n in NAMES if n != name]
    lowering = context(backends["hpu-lazy"])
    verify_module(made_by(lowering, passes))
    assert not [line for line in lowering.log if f" {name} " in line]


def test_several_passes_are_disabled_together(backends: dict[str, Backend]) -> None:
    passes = pipeline(disabled=["form_regions", "place_marks"])
    assert "rt." not in str(made_by(context(backends["hpu-lazy"]), passes))


def test_without_marks_a_lazy_program_does_not_pass_the_verifier(backends: dict[str, Backend]) -> None:
    passes = pipeline(disabled=["place_marks"])
    with pytest.raises(Illegal, match=r"^V11 rt\.region .* is never flushed; put an rt\.mark after it$"):
        made_by(context(backends["hpu-lazy"]), passes)
    made_by(context(backends["cpu"]), passes)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_required_pass_cannot_be_disabled(name: str) -> None:
    with pytest.raises(VitcoreError) as refused:
        pipeline(disabled=[name])
    assert str(refused.value) == f"pass {name!r} cannot be disabled: a program cannot be lowered without it"


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(VitcoreError) as refused:
        pipeline(disabled=["place_mark"])
    assert str(refused.value) == "no pass is called 'place_mark' (did you mean 'place_marks'?); see --explain"


# ---- plugins' passes ----


@lowering_pass("exact")
def note_stage(program: Program, lowering: Lowering) -> Program:
    """Write into the header which level the program has."""
    return replace(program, attrs={**program.attrs, "noted": program.level})


@lowering_pass("algebraic")
def drop_health_check(program: Program, lowering: Lowering) -> Program:
    """A pass with a bug: what health.check made is used but no longer defined."""
    return replace(program, ops=tuple(op for op in program.ops if op.name != "health.check"))


@pytest.mark.parametrize("stage", NAMES)
def test_a_plugins_pass_stands_after_the_stage_that_it_names(stage: str, backends: dict[str, Backend]) -> None:
    passes = pipeline([(stage, note_stage)])
    at = NAMES.index(stage)
    assert [p.name for p in passes] == [*NAMES[: at + 1], "note_stage", *NAMES[at + 1 :]]
    begun, done = at >= NAMES.index("begin_lowering"), stage == "seal"
    level = "lowered:cpu" if done else "lowering:cpu" if begun else "step"
    assert made_by(context(backends["cpu"]), passes)["train"].attrs["noted"] == level


def test_a_plugins_pass_can_be_a_stage_and_can_be_disabled() -> None:
    extra = [("fold_zero_add", note_stage), ("note_stage", drop_health_check)]
    assert [p.name for p in pipeline(extra)][2:4] == ["note_stage", "drop_health_check"]
    assert [p.name for p in pipeline(extra, disabled=["note_stage", "drop_health_check"])] == NAMES


def test_a_plugins_pass_after_no_stage_is_refused() -> None:
    with pytest.raises(VitcoreError) as refused:
        pipeline([("form_region", note_stage)])
    assert str(refused.value) == (
        "pass 'note_stage' wants to run after 'form_region', which is no pass (did you mean 'form_regions'?)"
    )


def test_a_plugins_pass_that_breaks_the_program_is_refused_at_once(backends: dict[str, Backend]) -> None:
    lowering = context(backends["cpu"])
    with pytest.raises(Illegal, match=r"^V1 opt\.update \(@train\[\d+\]\): %ok is not defined before this op"):
        made_by(lowering, pipeline([("fold_zero_add", drop_health_check)]))
    assert lowering.log[-1] == "03 drop_health_check (algebraic) @init: unchanged"


# ---- fuel ----


def rewrites(backend: Backend, spec: StepSpec, world: int) -> int:
    lowering = context(backend, world=world)
    made_by(lowering, spec=spec)
    return lowering.fuel.used


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("accumulation", [1, 16])
@pytest.mark.parametrize("name", ["cpu", "hpu-lazy"])
def test_any_amount_of_fuel_makes_a_legal_module_and_one_more_makes_one_more_rewrite(
    name: str, accumulation: int, world: int, backends: dict[str, Backend]
) -> None:
    backend, spec = backends[name], StepSpec(name="recipe", optimizer="adamw", accumulation=accumulation)
    enough = rewrites(backend, spec, world)
    texts = []
    for n in range(enough + 2):
        lowering = context(backend, n, world=world)
        texts.append(str(verify_module(made_by(lowering, spec=spec))))
        assert lowering.fuel.used == min(n, enough)
    assert texts[-1] == texts[-2] == str(made_by(context(backend, world=world), spec=spec))
    assert len(set(texts)) == enough + 1


def test_fuel_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITCORE_FUEL", raising=False)
    assert fuel_from_env() == Fuel(None)
    monkeypatch.setenv("VITCORE_FUEL", "")
    assert fuel_from_env() == Fuel(None)
    monkeypatch.setenv("VITCORE_FUEL", "3")
    assert fuel_from_env() == Fuel(3)
    for wrong in ("some", "-1", "1.5", "²"):
        monkeypatch.setenv("VITCORE_FUEL", wrong)
        with pytest.raises(VitcoreError) as refused:
            fuel_from_env()
        assert str(refused.value) == f"VITCORE_FUEL={wrong!r} is no number of rewrites; set a whole number or unset it"


def test_fuel_is_spent_one_by_one() -> None:
    fuel = Fuel(2)
    assert [fuel.take() for _ in range(4)] == [True, True, False, False]
    assert fuel.used == 2
    assert all(Fuel().take() for _ in range(3))
