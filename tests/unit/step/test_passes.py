"""The passes that rewrite what a program says, one small text in and one out for each."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest

from vitcore.errors import VitcoreError
from vitcore.step.lowering import TIERS, Fuel
from vitcore.step.passes.begin_lowering import begin_lowering
from vitcore.step.passes.carry_zero_grads import carry_zero_grads
from vitcore.step.passes.choose_precision import choose_precision
from vitcore.step.passes.fold_zero_add import fold_zero_add
from vitcore.step.passes.inline_single_repeat import inline_single_repeat
from vitcore.step.passes.seal import seal
from vitcore.step.pipeline import PIPELINE

Rewritten = Callable[..., str]


def program(text: str) -> str:
    return dedent(text).lstrip("\n")


def test_every_pass_states_its_tier_and_a_name_of_its_own() -> None:
    assert all(p.tier in TIERS for p in PIPELINE)
    assert len({p.name for p in PIPELINE}) == len(PIPELINE)


# ---- inline_single_repeat ----

LOOP = program("""
    step @p(%m: metrics, %s: scalar<f32>) [
      %m1 = repeat %m {n=1} (%a: metrics) [
        %b = metrics.add %a, %s {name=loss} : metrics
        yield %b
      ]
      %m2, %ok = health.check %m1, %s : metrics, flag
      return %m2
    ]
""")


def test_a_loop_of_one_round_becomes_its_body(rewritten: Rewritten) -> None:
    assert rewritten(inline_single_repeat, LOOP) == program("""
        step @p(%m: metrics, %s: scalar<f32>) [
          %b = metrics.add %m, %s {name=loss} : metrics
          %m2, %ok = health.check %b, %s : metrics, flag
          return %m2
        ]
    """)


def test_a_value_that_the_loop_passes_through_keeps_its_outer_name(rewritten: Rewritten) -> None:
    text = program("""
        step @p(%m: metrics, %k: key) [
          %m1, %k1 = repeat %m, %k {n=1} (%a: metrics, %b: key) [
            yield %a, %b
          ]
          %k2, %m2 = repeat %k1, %m1 {n=1} (%c: key, %d: metrics) [
            yield %c, %d
          ]
          return %m2, %k2
        ]
    """)
    assert rewritten(inline_single_repeat, text) == "step @p(%m: metrics, %k: key) [\n  return %m, %k\n]\n"


@pytest.mark.parametrize("count", [2, 16])
def test_a_loop_of_more_rounds_stays(rewritten: Rewritten, count: int) -> None:
    text = LOOP.replace("n=1", f"n={count}")
    assert rewritten(inline_single_repeat, text) == text


def test_without_fuel_the_loop_stays(rewritten: Rewritten) -> None:
    assert rewritten(inline_single_repeat, LOOP, fuel=Fuel(0)) == LOOP


# ---- fold_zero_add ----

ZERO = program("""
    step @p(%p: params<f32>, %d: grads<f32 sum partial>) [
      %z = grads.zero %p : grads<f32 sum partial>
      %s = grads.add %z, %d : grads<f32 sum partial>
      return %s
    ]
""")
FOLDED = "step @p(%p: params<f32>, %d: grads<f32 sum partial>) [\n  return %d\n]\n"


def test_adding_to_fresh_zeros_is_no_work(rewritten: Rewritten) -> None:
    assert rewritten(fold_zero_add, ZERO) == FOLDED
    assert rewritten(fold_zero_add, ZERO.replace("%z, %d :", "%d, %z :")) == FOLDED


def test_sums_of_sums_fold_to_what_is_not_zero(rewritten: Rewritten) -> None:
    text = program("""
        step @p(%p: params<f32>, %d: grads<f32 sum partial>) [
          %y = grads.zero %p : grads<f32 sum partial>
          %z = grads.zero %p : grads<f32 sum partial>
          %s = grads.add %y, %d : grads<f32 sum partial>
          %t = grads.add %s, %z : grads<f32 sum partial>
          return %t
        ]
    """)
    assert rewritten(fold_zero_add, text) == FOLDED


def test_zeros_that_a_loop_carries_stay(rewritten: Rewritten) -> None:
    text = program("""
        step @p(%p: params<f32>, %d: grads<f32 sum partial>) [
          %z = grads.zero %p : grads<f32 sum partial>
          %s = repeat %z {n=2} (%a: grads<f32 sum partial>) [
            %e = grads.zero %p : grads<f32 sum partial>
            %b = grads.add %a, %e : grads<f32 sum partial>
            yield %b
          ]
          %t = grads.add %s, %d : grads<f32 sum partial>
          return %t
        ]
    """)
    assert rewritten(fold_zero_add, text) == text


def test_without_fuel_the_zeros_stay(rewritten: Rewritten) -> None:
    assert rewritten(fold_zero_add, ZERO, fuel=Fuel(0)) == ZERO


# ---- begin_lowering and seal ----


@pytest.mark.parametrize(("lazy", "shown"), [(True, "yes"), (False, "no")])
def test_lowering_begins_with_a_level_and_a_header(rewritten: Rewritten, lazy: bool, shown: str) -> None:
    text = "step @p(%m: metrics) [\n  return %m\n]\n"
    begun = f"lowering:toy @p(%m: metrics) {{lazy={shown}, world=1}} [\n  return %m\n]\n"
    assert rewritten(begin_lowering, text, lazy=lazy) == begun
    assert rewritten(seal, begun) == begun.replace("lowering:", "lowered:")


# ---- carry_zero_grads ----

TRAIN = program("""
    lowering:toy @train(%p: params<f32>, %d: grads<f32 sum partial>, %hyper: hyper) [
      %g0 = grads.zero %p : grads<f32 sum partial>
      %s = grads.add %g0, %d : grads<f32 sum partial>
      return %p, %s
    ]
""")
CARRIED = program("""
    lowering:toy @train(%p: params<f32>, %d: grads<f32 sum partial>, %g0: derived<grads<f32 sum partial>>, %hyper: hyper) [
      %s = grads.add %g0, %d : grads<f32 sum partial>
      %g0n = grads.zero %p : grads<f32 sum partial>
      return %p, %s, %g0n
    ]
""")
RESTORE = program("""
    lowering:toy @restore(%p: params<f32>, %g0n: grads<f32 sum partial>) [
      return %p, %g0n
    ]
""")
INIT = program("""
    lowering:toy @init(%k: key) [
      %p = model.init %k : params<f32>
      %r = metrics.zero : metrics
      return %p, %r
    ]
""")
EVAL = "lowering:toy @eval(%m: metrics) [\n  return %m\n]\n"


def test_on_a_lazy_device_the_zeros_of_the_next_step_are_made_in_this_one(rewritten: Rewritten) -> None:
    assert rewritten(carry_zero_grads, TRAIN, lazy=True) == CARRIED


def test_zeros_are_carried_behind_the_state_where_there_is_no_free_parameter(rewritten: Rewritten) -> None:
    hyper = ", %hyper: hyper"
    assert rewritten(carry_zero_grads, TRAIN.replace(hyper, ""), lazy=True) == CARRIED.replace(hyper, "")


def test_init_and_restore_make_the_first_zeros_after_the_state(rewritten: Rewritten) -> None:
    zero = "  %{0} = grads.zero %p : grads<f32 sum partial>\n  return"
    made = rewritten(carry_zero_grads, INIT, lazy=True, siblings=[TRAIN])
    assert made == INIT.replace("  return", zero.format("g0n")).replace("%p, %r\n", "%p, %r, %g0n\n")
    # A name that the program has already is not taken again.
    made = rewritten(carry_zero_grads, RESTORE, lazy=True, siblings=[TRAIN])
    assert made == RESTORE.replace("  return", zero.format("g0n2")).replace("%p, %g0n\n", "%p, %g0n, %g0n2\n")


def test_nothing_is_carried_where_it_is_not_needed(rewritten: Rewritten) -> None:
    assert rewritten(carry_zero_grads, TRAIN, lazy=False) == TRAIN
    assert rewritten(carry_zero_grads, EVAL, lazy=True, siblings=[TRAIN]) == EVAL
    no_zeros = "lowering:toy @train(%p: params<f32>) [\n  return %p\n]\n"
    assert rewritten(carry_zero_grads, no_zeros, lazy=True) == no_zeros
    assert rewritten(carry_zero_grads, INIT, lazy=True, siblings=[no_zeros]) == INIT


# ---- choose_precision ----

MODEL = program("""
    lowering:toy @p(%p: params<f32>, %x: batch<dev>, %m: metrics) [
      %m1 = repeat %m {n=2} (%a: metrics) [
        %y = model.apply %p, %x : logits
        %b = metrics.count %a, %y, %x : metrics
        yield %b
      ]
      return %m1
    ]
""")


def test_a_precision_is_written_on_the_ops_that_run_the_model_and_into_the_header(rewritten: Rewritten) -> None:
    chosen = rewritten(choose_precision, MODEL, precision="bf16", precisions=("fp32", "bf16"))
    assert chosen == MODEL.replace(") [\n  %m1", ") {precision=bf16} [\n  %m1").replace(
        "%p, %x : logits", "%p, %x {autocast=bf16} : logits"
    )
    chosen = rewritten(choose_precision, MODEL)
    assert chosen == MODEL.replace(") [\n  %m1", ") {precision=fp32} [\n  %m1")


@pytest.mark.parametrize(
    ("precision", "offered", "message"),
    [
        ("bf16", ("fp32",), "precision 'bf16' is not offered by backend 'toy'; choose one of: fp32"),
        ("fp8", ("fp32", "bf16"), "precision 'fp8' is not offered by backend 'toy'; choose one of: fp32, bf16"),
        # What the backend claims but no policy describes is not offered either.
        ("fp8", ("fp32", "fp8"), "precision 'fp8' is not offered by backend 'toy'; choose one of: fp32"),
    ],
)
def test_a_precision_that_is_not_offered_is_refused(
    rewritten: Rewritten, precision: str, offered: tuple[str, ...], message: str
) -> None:
    with pytest.raises(VitcoreError) as refused:
        rewritten(choose_precision, MODEL, precision=precision, precisions=offered)
    assert str(refused.value) == message
