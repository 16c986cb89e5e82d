"""Random legal steps stay legal through every pass, for the shipped backends and for made-up ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.backend import Backend, Kernel, World
from vitcore.plugins import load_plugins
from vitcore.runtime.codegen import source
from vitcore.runtime.reference import REFERENCE
from vitcore.step.build import OPTIMIZERS, StepSpec, build
from vitcore.step.ir import FLOW, Group, Module, Op, Program, walk
from vitcore.step.lowering import Lowering
from vitcore.step.ops import OPS, RUNS_MODEL
from vitcore.step.pipeline import PIPELINE, lower
from vitcore.step.text import parse
from vitcore.step.verify import verify_module

SHIPPED = ("cpu", "cuda", "hpu-lazy", "hpu-eager")


@st.composite
def reordered(draw: st.DrawFn, ops: tuple[Op, ...]) -> tuple[Op, ...]:
    """A block's ops in another order that respects what defines, borrows and consumes what; its end stays the end."""
    *rest, end = ops
    waiting, done = [*rest], []
    while waiting:
        ready = [op for i, op in enumerate(waiting) if not any(_before(e, op) for e in waiting[:i])]
        done.append(draw(st.sampled_from(ready)) if len(ready) > 1 else ready[0])
        waiting.remove(done[-1])
    return (*done, end)


def _before(early: Op, late: Op) -> bool:
    """Whether `early` must stay before `late`: it defines or touches a value of late's that is not free."""
    if early.name == "model.backward" and late.name.startswith("params."):
        return True  # the tape holds parameters that are about to be consumed, which its own operands do not show
    touched = {v for o in (early, *walk(early.body)) for v in (*o.args, *o.outs)}
    return any(a in touched and (a.ty.linear or a in early.outs) for o in (late, *walk(late.body)) for a in o.args)


def _insert(text: str, before: str, line: str) -> str:
    at = text.index(f"  {before}")
    return f"{text[:at]}  {line}\n{text[at:]}"


@st.composite
def steps(draw: st.DrawFn) -> Module:
    """A legal neutral module: the shipped one varied in every way that a recipe could vary it."""
    groups = draw(st.integers(1, 4))
    spec = StepSpec(
        name="random",
        optimizer=draw(st.sampled_from(sorted(OPTIMIZERS))),
        accumulation=draw(st.sampled_from([1, 1, 2, 16])),
        clip=draw(st.booleans()),
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        augment=draw(st.sampled_from([(), (), ("flip", "mix")])),
        ema=draw(st.booleans()),
        sam=draw(st.sampled_from([False, False, True])),
        groups=tuple(Group(f"g{i}", f"blocks.{i}", lr=0.5**i) for i in range(groups)),
    )
    module = build(spec)
    text, ready = str(module["train"]), "%gc" if spec.clip else "%gr"
    if draw(st.booleans()):  # reduce the sum, then scale it: the same mean
        n = spec.accumulation
        text = text.replace(
            f"%gs = grads.scale %g {{by=1/{n}}} : grads<f32 mean partial>\n"
            "  %gr = grads.all_reduce %gs {group=dp} : grads<f32 mean synced>",
            "%gs = grads.all_reduce %g {group=dp} : grads<f32 sum synced>\n"
            f"  %gr = grads.scale %gs {{by=1/{n}}} : grads<f32 mean synced>",
        )
    if draw(st.booleans()):  # one more borrowed read of the gradients, noted in the metrics or not
        text = _insert(text, "%p1, %o1", f"%again = grads.norm {ready} : scalar<f32>")
        if draw(st.booleans()):
            text = _insert(text, "%p1, %o1", "%m4 = metrics.add %m3, %again {name=grad_norm} : metrics")
            text = text.replace("%c1, %k1, %m3\n", "%c1, %k1, %m4\n")
    for i in range(draw(st.integers(0, 2))):  # more metrics inside the loop
        old, new = f"%mb{'x' * i}", f"%mb{'x' * (i + 1)}"
        text = _insert(text, "  yield", f"  {new} = metrics.add {old}, %loss {{name=loss}} : metrics")
        text = text.replace(f"%kb, {old}\n", f"%kb, {new}\n")
    if draw(st.booleans()):  # a second accumulation, of zeros alone
        text = _insert(text, "%gs =", f"%z = grads.zero %p{'l' * spec.sam} : grads<f32 sum partial>")
        text = _insert(text, "%gs =", "%gz = grads.add %z, %g : grads<f32 sum partial>")
        text = text.replace("grads.scale %g ", "grads.scale %gz ").replace("all_reduce %g ", "all_reduce %gz ")
    train = parse(text)
    ops = tuple(replace(op, body=draw(reordered(op.body))) if op.body else op for op in draw(reordered(train.ops)))
    train = replace(train, ops=ops)
    return verify_module(replace(module, programs=tuple(train if p.name == "train" else p for p in module.programs)))


FLUSHES = st.tuples(*[st.sampled_from([0, 0, 1, 3])] * 3)
HOST_OPS = ("rng.split", "data.advance")
DEVICE_OPS = sorted(
    name for name, row in OPS.items() if not row.effects & {"host", "transfer"} and name not in HOST_OPS
)


@st.composite
def made_up(draw: st.DrawFn) -> tuple[Backend, list[Kernel]]:
    """A backend nobody ships: lazy or not, with any split_after and kernels that flush in any way."""
    split_after = draw(st.frozensets(st.sampled_from(sorted(OPS)), max_size=4))
    mark = "nobody:marks" if draw(st.booleans()) else None
    precisions = ("fp32", "bf16")
    backend = Backend(
        name="made-up", device="x", mark=mark, split_after=split_after, precisions=precisions, prefetch=draw(st.booleans()),
        narrow_weights=draw(st.booleans()), capture="nobody:captures" if draw(st.booleans()) else None,
    )  # fmt: skip
    claimed = draw(st.lists(st.sampled_from(DEVICE_OPS), max_size=6, unique=True))
    return backend, [Kernel(op, "vendor", "nobody:has_it", flushes=draw(FLUSHES)) for op in claimed]


def kinds(program: Program) -> Counter[str]:
    """How often each op stands in the program, at any depth, without what carries control flow."""
    return Counter(op.name for op in walk(program.ops) if op.name not in FLOW)


@dataclass(frozen=True)
class Change:
    """What a pass may do to the number of ops."""

    flow: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()


ALLOWED = {
    "inline_single_repeat": Change(flow=frozenset({"repeat", "yield"})),
    "fold_zero_add": Change(gone=frozenset({"grads.zero", "grads.add"})),
    "prefetch": Change(gone=frozenset({"data.next"}), moved=frozenset({"data.advance", "data.peek", "data.put"})),
    "carry_zero_grads": Change(moved=frozenset({"grads.zero"})),
    "narrow_weights": Change(moved=frozenset({"params.narrow"})),
    "fuse_grad": Change(
        gone=frozenset({"model.forward", "model.backward", "grads.add"}), moved=frozenset({"model.grad"})
    ),
    "form_regions": Change(flow=frozenset({"rt.region", "yield"})),
    "place_marks": Change(flow=frozenset({"rt.mark"})),
}


def check(module: Module, backend: Backend, kernels: list[Kernel], precision: str, world: int) -> Module:
    """Lower pass by pass; `lower` verifies after each, and here the ops are counted."""
    lowering = Lowering(backend, [*kernels, *REFERENCE], precision=precision, world=World(world))
    before, carried = module, 0
    for each in PIPELINE:
        lowering.module = before
        after = replace(before, programs=tuple(each.run(p, lowering) for p in before.programs))
        allowed = ALLOWED.get(each.name, Change())
        for old, new in zip(before.programs, after.programs, strict=True):
            lost, made = kinds(old) - kinds(new), kinds(new) - kinds(old)
            assert lost.keys() <= allowed.gone, f"{each.name} lost {lost}"
            assert made.keys() <= allowed.moved, f"{each.name} made {made}"
            if each.name == "fold_zero_add":
                assert lost["grads.zero"] == lost["grads.add"]
            if each.name == "carry_zero_grads":
                carried += sum(made.values())
            if each.name == "narrow_weights":  # once for each bundle of parameters that the model runs by
                assert made["params.narrow"] <= len({op.args[0] for op in walk(old.ops) if op.name in RUNS_MODEL})
            if each.name == "fuse_grad":
                assert made["model.grad"] == lost["model.forward"] == lost["model.backward"] >= lost["grads.add"]
            flow = [Counter(op.name for op in walk(p.ops) if op.name in FLOW) for p in (old, new)]
            assert (flow[0] - flow[1]).keys() | (flow[1] - flow[0]).keys() <= allowed.flow
            assert [v for v in new.params if not v.ty.derived] == [v for v in old.params if not v.ty.derived]
        before = after
    # The zeros of the next step move inside train, and are made once more by init and by restore.
    assert carried in ((0, 2) if backend.lazy else (0,))
    final = lower(module, Lowering(backend, [*kernels, *REFERENCE], precision=precision, world=World(world)))
    assert final.programs == before.programs
    return final


@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=8, deadline=None)
@given(module=steps(), precision=st.sampled_from(["fp32", "bf16"]), world=st.sampled_from([1, 8]))
def test_a_random_step_is_lowered_for_every_shipped_backend(
    name: str, module: Module, precision: str, world: int
) -> None:
    plugins = load_plugins()
    sealed = check(module, plugins.backend(name), plugins.kernels(name), precision, world)
    for program in sealed.programs:
        compile(source(program), program.name, "exec")


@settings(max_examples=25, deadline=None)
@given(module=steps(), backend=made_up(), precision=st.sampled_from(["fp32", "bf16"]), world=st.sampled_from([1, 8]))
def test_a_random_step_is_lowered_for_a_backend_that_nobody_ships(
    module: Module, backend: tuple[Backend, list[Kernel]], precision: str, world: int
) -> None:
    sealed = check(module, *backend, precision, world)
    for program in sealed.programs:
        compile(source(program), program.name, "exec")


@settings(max_examples=25, deadline=None)
@given(module=steps(), backend=made_up())
def test_a_lazy_device_is_flushed_once_after_each_region(module: Module, backend: tuple[Backend, list[Kernel]]) -> None:
    lazy = replace(backend[0], mark="nobody:marks")
    for program in lower(module, Lowering(lazy, [*backend[1], *REFERENCE])).programs:
        for block in (program.ops, *(op.body for op in program.ops if op.name == "repeat")):
            for region, after in pairwise(block):
                if region.name != "rt.region":
                    assert not sum(region.flushes)
                    continue
                own = region.body[-2].flushes[2] > 0
                next_one = after.name == "rt.region" and after.body[0].flushes[0] > 0
                assert (after.name == "rt.mark") != (own or next_one)
                for first, second in pairwise(region.body[:-1]):
                    assert not sum(first.flushes[1:])
                    assert not second.flushes[0]
