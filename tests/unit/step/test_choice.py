"""choose_implementations: which kernel claims an op, in which order they are asked, and what refusals say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pluggy
import pytest

from vitcore.api import Kernel, hookimpl
from vitcore.backend import World, kernel
from vitcore.errors import VitcoreError
from vitcore.hooks import Hooks
from vitcore.plugins import Plugins
from vitcore.runtime.reference import REFERENCE
from vitcore.step.ir import Op
from vitcore.step.lowering import Fuel, Lowering
from vitcore.step.passes.choose_implementations import choose_implementations
from vitcore.step.text import parse

Rewritten = Callable[..., str]

TEXT = """\
lowering:toy @p(%m: metrics, %s: scalar<f32>) [
  %m1 = repeat %m {n=2} (%a: metrics) [
    %b = metrics.add %a, %s {name=loss} : metrics
    yield %b
  ]
  return %m1
]
"""


def chosen(rewritten: Rewritten, kernels: Sequence[Kernel], world: int = 1) -> str:
    """The attributes of `metrics.add` after the pass."""
    text = rewritten(choose_implementations, TEXT, kernels=kernels, world=World(world))
    line = next(line for line in text.splitlines() if "metrics.add" in line)
    before, _, after = TEXT.partition("{name=loss}")
    shown = line[line.index("{") : line.index("}") + 1]
    assert text == f"{before}{shown}{after}"  # nothing else has changed
    return shown


def test_the_first_kernel_that_accepts_claims_the_op(rewritten: Rewritten) -> None:
    two = [Kernel("metrics.add", "first", "x:y"), Kernel("metrics.add", "second", "x:y")]
    assert chosen(rewritten, two) == "{impl=first, name=loss}"
    assert chosen(rewritten, two[::-1]) == "{impl=second, name=loss}"


def test_a_kernel_of_another_op_is_not_asked(rewritten: Rewritten) -> None:
    def never(op: Op, world: World) -> bool:
        raise AssertionError(f"asked for {op.name}")

    kernels = [Kernel("metrics.zero", "other", "x:y", never), *REFERENCE]
    assert chosen(rewritten, kernels) == "{impl=reference, name=loss}"


def test_when_sees_the_op_and_the_world(rewritten: Rewritten) -> None:
    seen: list[tuple[str, str, World]] = []

    def when(op: Op, world: World) -> bool:
        seen.append((op.name, op.attrs["name"], world))
        return world.size == 8

    kernels = [Kernel("metrics.add", "eight", "x:y", when), *REFERENCE]
    assert chosen(rewritten, kernels, world=8) == "{impl=eight, name=loss}"
    assert chosen(rewritten, kernels, world=2) == "{impl=reference, name=loss}"
    assert set(seen) == {("metrics.add", "loss", World(8)), ("metrics.add", "loss", World(2))}


def test_flushes_are_declared_in_the_text_where_there_are_some(rewritten: Rewritten) -> None:
    assert chosen(rewritten, [Kernel("metrics.add", "k", "x:y", flushes=(0, 0, 0))]) == "{impl=k, name=loss}"
    fixed = Kernel("metrics.add", "k", "x:y", flushes=(1, 0, 2))
    assert chosen(rewritten, [fixed]) == "{flushes=1/0/2, impl=k, name=loss}"
    of_the_op = Kernel("metrics.add", "k", "x:y", flushes=lambda op: (0, len(op.attrs["name"]), 0))
    assert chosen(rewritten, [of_the_op]) == "{flushes=0/4/0, impl=k, name=loss}"


def test_a_decorated_function_is_a_kernel_called_as_the_function(rewritten: Rewritten) -> None:
    @kernel("metrics.add", flushes=(0, 0, 1))
    def quick_add(rt: object, metrics: object, value: object, name: str) -> object:
        return metrics

    assert chosen(rewritten, [quick_add, *REFERENCE]) == "{flushes=0/0/1, impl=quick_add, name=loss}"


class Brings:
    """A plugin with one kernel for metrics.add."""

    def __init__(self, name: str) -> None:
        self.name = name

    @hookimpl
    def vitcore_kernels(self, backend: str) -> list[Kernel]:
        return [Kernel("metrics.add", self.name, "x:y")] if backend == "toy" else []


def test_later_plugins_are_asked_first_and_the_reference_last(rewritten: Rewritten) -> None:
    manager = pluggy.PluginManager("vitcore")
    manager.add_hookspecs(Hooks)
    for name in ("early", "late"):
        manager.register(Brings(name), name=name)
    plugins = Plugins(manager)
    assert [k.name for k in plugins.kernels("toy")] == ["late", "early"]
    assert plugins.kernels("another") == []
    assert chosen(rewritten, [*plugins.kernels("toy"), *REFERENCE]) == "{impl=late, name=loss}"


# ---- refusals ----


def lowering(backends: dict, kernels: Sequence[Kernel], world: int = 1, fuel: int | None = None) -> Lowering:
    return Lowering(backends["cpu"], kernels, world=World(world), fuel=Fuel(fuel))


def test_every_refusal_is_noted_with_its_reason(backends: dict) -> None:
    kernels = [
        Kernel("metrics.add", "never", "x:y", lambda op, world: False),
        Kernel("metrics.add", "wide", "x:y", lambda op, world: world.size > 1 or "it needs several ranks"),
        *REFERENCE,
        Kernel("metrics.add", "not_asked", "x:y", lambda op, world: "nobody asked"),
    ]
    low = lowering(backends, kernels)
    choose_implementations.run(parse(TEXT), low)
    assert low.refusals == [
        "@p metrics.add: never refused: its condition does not hold",
        "@p metrics.add: wide refused: it needs several ranks",
    ]


def test_an_op_that_no_kernel_takes_is_refused_by_name(backends: dict) -> None:
    low = lowering(backends, [Kernel("metrics.add", "never", "x:y", lambda op, world: "not today")])
    with pytest.raises(VitcoreError) as refused:
        choose_implementations.run(parse(TEXT), low)
    assert str(refused.value) == (
        "metrics.add has no kernel on backend 'cpu' that takes it (1 refused); "
        "provide one with @kernel('metrics.add') or run with --explain to see why"
    )
    assert low.refusals == ["@p metrics.add: never refused: not today"]


def test_without_fuel_the_last_kernel_that_accepts_is_taken(backends: dict) -> None:
    kernels = [
        Kernel("metrics.add", "fast", "x:y"),
        Kernel("metrics.add", "plain", "x:y"),
        Kernel("metrics.add", "never", "x:y", lambda op, world: "not today"),
    ]
    low = lowering(backends, kernels, fuel=0)
    assert "{impl=plain, name=loss}" in str(choose_implementations.run(parse(TEXT), low))
    assert low.refusals == ["@p metrics.add: fast refused: out of fuel"]
    assert low.fuel.used == 0
    low = lowering(backends, kernels, fuel=1)
    assert "{impl=fast, name=loss}" in str(choose_implementations.run(parse(TEXT), low))


@pytest.mark.parametrize(("world", "impl"), [(1, "identity"), (8, "flat")])
def test_one_rank_reduces_nothing_even_without_fuel(world: int, impl: str, backends: dict) -> None:
    reduced = "  %a = metrics.all_reduce %m {{group=dp{}}} : metrics<synced>\n"
    text = f"lowering:toy @p(%m: metrics) [\n{reduced}  return %a\n]\n".format
    for fuel in (0, None):
        low = lowering(backends, REFERENCE, world=world, fuel=fuel)
        assert str(choose_implementations.run(parse(text("")), low)) == text(f", impl={impl}")
