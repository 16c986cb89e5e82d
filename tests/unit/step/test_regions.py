"""form_regions and place_marks: what is compiled together, and where a lazy device is flushed."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import dedent

import pytest

from vitcore.step.ir import Module, Op, walk
from vitcore.step.lowering import Fuel
from vitcore.step.passes.form_regions import form_regions
from vitcore.step.passes.place_marks import place_marks
from vitcore.step.text import parse

Rewritten = Callable[..., str]


def program(text: str) -> str:
    return dedent(text).lstrip("\n")


STEP = program("""
    lowering:toy @train(%p: params<f32>, %c: cursor, %m: metrics, %s: scalar<f32>) [
      %m1 = metrics.add %m, %s {name=loss} : metrics
      %m2, %ok = health.check %m1, %s : metrics, flag
      %h, %c1 = data.next %c : batch<host>, cursor
      %x = data.put %h : batch<dev>
      %y = model.apply %p, %x : logits
      %m3 = metrics.count %m2, %y, %x : metrics
      return %c1, %m3
    ]
""")


def test_runs_of_device_ops_become_regions_that_yield_what_is_used_later(rewritten: Rewritten) -> None:
    assert rewritten(form_regions, STEP) == program("""
        lowering:toy @train(%p: params<f32>, %c: cursor, %m: metrics, %s: scalar<f32>) [
          %m2 = rt.region {name=train_body} [
            %m1 = metrics.add %m, %s {name=loss} : metrics
            %m2_, %ok = health.check %m1, %s : metrics, flag
            yield %m2_
          ]
          %h, %c1 = data.next %c : batch<host>, cursor
          %x = data.put %h : batch<dev>
          %m3 = rt.region {name=apply} [
            %y = model.apply %p, %x : logits
            %m3_ = metrics.count %m2, %y, %x : metrics
            yield %m3_
          ]
          return %c1, %m3
        ]
    """)


def test_fuel_decides_region_by_region(rewritten: Rewritten) -> None:
    assert rewritten(form_regions, STEP, fuel=Fuel(0)) == STEP
    one = rewritten(form_regions, STEP, fuel=Fuel(1))
    assert one.count("rt.region") == 1
    assert "name=train_body" in one


def test_regions_of_one_role_and_values_of_one_stem_get_names_of_their_own(rewritten: Rewritten) -> None:
    text = program("""
        lowering:toy @train(%a: metrics, %a_: metrics, %s: scalar<f32>) [
          %b, %f = health.check %a, %s : metrics, flag
          %b_, %f_ = health.check %a_, %s : metrics, flag
          %c, %g = health.check %b, %s {flushes=1/0/0} : metrics, flag
          %c_, %g_ = health.check %b_, %s {flushes=1/0/0} : metrics, flag
          return %c, %c_
        ]
    """)
    lowered = parse(rewritten(form_regions, text))
    assert [op.attrs["name"] for op in lowered.ops[:-1]] == ["train_body", "train_body_2", "train_body_3"]
    assert [o.name for op in lowered.ops[:-1] for o in op.outs] == ["b", "b_", "c", "c_"]


def test_a_region_that_stands_there_already_stays_and_keeps_its_name(rewritten: Rewritten) -> None:
    text = program("""
        lowering:toy @train(%m: metrics, %s: scalar<f32>) [
          %m1 = rt.region {name=train_body} [
            %m1_ = metrics.add %m, %s {name=loss} : metrics
            yield %m1_
          ]
          %m2 = metrics.add %m1, %s {name=loss} : metrics
          return %m2
        ]
    """)
    lowered = rewritten(form_regions, text)
    assert parse(lowered).ops[0] == parse(text).ops[0]
    assert "%m2 = rt.region {name=train_body_2} [" in lowered


# ---- flushes ----

THREE = program("""
    lowering:toy @p(%m: metrics, %s: scalar<f32>) {lazy=yes} [
      %a, %fa = health.check %m, %s {flushes=A} : metrics, flag
      %b, %fb = health.check %a, %s {flushes=B} : metrics, flag
      %c, %fc = health.check %b, %s {flushes=C} : metrics, flag
      return %c
    ]
""")


def sketch(ops: tuple[Op, ...]) -> str:
    """A line that shows regions in brackets, marks as `!`, and each op by its first result."""
    shown = ""
    for op in ops:
        if op.name == "rt.region":
            shown += f"[{sketch(op.body)}]"
        elif op.name == "repeat":
            shown += f"{{{sketch(op.body)}}}"
        elif op.name == "rt.mark":
            shown += "!"
        elif op.outs:
            shown += op.outs[0].name.rstrip("_")
    return shown


@pytest.mark.parametrize(
    ("a", "b", "c", "regions", "marks"),
    [
        ("0/0/0", "0/0/0", "0/0/0", "[abc]", "[abc]!"),
        ("0/0/0", "1/0/0", "0/0/0", "[a][bc]", "[a][bc]!"),
        ("0/0/0", "0/1/0", "0/0/0", "[ab][c]", "[ab]![c]!"),
        ("0/0/0", "0/0/1", "0/0/0", "[ab][c]", "[ab][c]!"),
        ("0/0/0", "1/0/1", "0/0/0", "[a][b][c]", "[a][b][c]!"),
        ("0/0/0", "1/1/0", "0/0/0", "[a][b][c]", "[a][b]![c]!"),
        ("0/0/0", "0/7/2", "0/0/0", "[ab][c]", "[ab][c]!"),
        # Two kernels that flush towards each other: the second flush finds nothing to do, and no mark is added.
        ("0/0/1", "1/0/0", "0/0/0", "[a][bc]", "[a][bc]!"),
        ("1/0/1", "1/0/1", "1/0/1", "[a][b][c]", "[a][b][c]"),
        ("1/0/0", "0/0/0", "0/0/1", "[abc]", "[abc]"),
    ],
)
def test_a_kernel_that_flushes_cuts_its_region_and_spares_the_mark(
    a: str, b: str, c: str, regions: str, marks: str, rewritten: Rewritten
) -> None:
    text = THREE.replace("A}", f"{a}}}").replace("B}", f"{b}}}").replace("C}", f"{c}}}")
    formed = rewritten(form_regions, text)
    marked = rewritten(place_marks, formed, lazy=True)
    assert sketch(parse(formed).ops) == regions
    assert sketch(parse(marked).ops) == marks
    assert rewritten(place_marks, marked, lazy=True) == marked  # a mark that stands there is not placed again
    assert rewritten(place_marks, formed, lazy=False) == formed


# ---- split_after ----

BODY = program("""
    lowering:toy @train(%p: params<f32>, %g: grads<f32 sum partial>, %x: batch<dev>, %k: key, %m: metrics) {lazy=yes} [
      %k1, %kf = rng.split %k : key, key
      %l, %t = model.forward %p, %x, %kf {flushes=F} : scalar<f32>, tape
      %d = model.backward %t {flushes=B} : grads<f32 sum partial>
      %s = grads.add %g, %d : grads<f32 sum partial>
      %a = metrics.add %m, %l {name=loss} : metrics
      %e, %ok = health.check %a, %l : metrics, flag
      return %s, %k1, %e
    ]
""")


@pytest.mark.parametrize(
    ("split_after", "forward", "backward", "shown"),
    [
        ([], "0/0/0", "0/0/0", "k1[ldsae]!"),
        (["model.forward"], "0/0/0", "0/0/0", "k1[l]![dsae]!"),
        # What only folds backward's result into accumulators rides in its region.
        (["model.backward"], "0/0/0", "0/0/0", "k1[ldsa]![e]!"),
        (["model.forward", "model.backward"], "0/0/0", "0/0/0", "k1[l]![dsa]![e]!"),
        (["health.check", "rng.split", "no.such.op"], "0/0/0", "0/0/0", "k1[ldsae]!"),
        # A kernel that flushed has cut already: what follows is not cut off a second time.
        (["model.backward"], "0/0/0", "0/0/1", "k1[ld][sae]!"),
        (["model.forward"], "0/0/1", "0/0/0", "k1[l][dsae]!"),
        (["model.forward"], "0/0/0", "1/0/0", "k1[l][dsae]!"),
    ],
)
def test_regions_are_cut_after_the_ops_that_the_backend_names(
    split_after: list[str], forward: str, backward: str, shown: str, rewritten: Rewritten
) -> None:
    text = BODY.replace("flushes=F", f"flushes={forward}").replace("flushes=B", f"flushes={backward}")
    formed = rewritten(form_regions, text, split_after=split_after)
    assert sketch(parse(rewritten(place_marks, formed, lazy=True)).ops) == shown


def test_a_loop_is_cut_inside_and_each_cut_is_marked(lowered: Callable[..., Module]) -> None:
    assert sketch(lowered("hpu-lazy", accumulation=4)["train"].ops) == "{hxkb[loss]![dgbmb]!}[gsgrgcm2m3g0np1]!"
    assert sketch(lowered("hpu-lazy")["train"].ops) == "hxkb[loss]![dmbgsgr]![gcm2m3p1]!"
    assert sketch(lowered("hpu-eager", accumulation=4)["train"].ops) == "[g0]{hxkb[lossdgbmb]}[gsgrgcm2m3p1]"


def test_a_region_holds_no_op_of_the_host(lowered: Callable[..., Module]) -> None:
    for backend in ("cpu", "hpu-lazy"):
        for each in lowered(backend, accumulation=2).programs:
            inside = {o.name for op in walk(each.ops) if op.name == "rt.region" for o in op.body}
            assert not inside & {"data.next", "data.put", "rng.split", "metrics.read"}
