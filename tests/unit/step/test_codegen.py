"""The generated Python: it calls what the text says, in that order, and its errors show its own lines."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from textwrap import dedent
from typing import Any

import pytest

from vitcore.errors import VitcoreError
from vitcore.runtime.codegen import call_name, compile_program, source
from vitcore.step.ir import Module, Op, Program
from vitcore.step.text import parse
from vitcore.step.verify import verify

HEAD = "lowered:toy @p(%m: metrics, %s: scalar<f32>) [\n"


def sealed(text: str) -> Program:
    return verify(parse(dedent(text).lstrip("\n")))


class FakeRuntime:
    """Records every call; a kernel returns as many fresh names as its op has results."""

    def __init__(self, program: Program) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.results = dict(self._results(program.ops))
        self.made = 0

    def _results(self, ops: Sequence[Op]) -> Iterator[tuple[str, int]]:
        for op in ops:
            if "impl" in op.attrs:
                yield call_name(op), len(op.outs)
            yield from self._results(op.body)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in self.results:
            raise AttributeError(name)

        def kernel(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            fresh = [f"{name}#{self.made + i}" for i in range(self.results[name])]
            self.made += len(fresh)
            return fresh[0] if len(fresh) == 1 else tuple(fresh)

        return kernel

    def mark(self) -> None:
        self.calls.append(("mark",))

    def region(self, fn: Callable[..., Any], how: str = "enter") -> Callable[..., Any]:
        def entered(*args: Any) -> Any:
            self.calls.append((how, fn.__name__))
            return fn(*args)

        return entered

    def capture(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        return self.region(fn, "launch")


def expected(ops: Sequence[Op]) -> Iterator[str]:
    """The calls that the text asks for, in order, loops unrolled."""
    for op in ops:
        if op.name == "repeat":
            for _ in range(int(op.attrs["n"])):
                yield from expected(op.body)
        elif op.name == "rt.region":
            yield f"{'launch' if 'capture' in op.attrs else 'enter'} {op.attrs['name']}"
            yield from expected(op.body)
        elif op.name == "rt.mark":
            yield "mark"
        elif op.name not in ("yield", "return"):
            yield call_name(op)


def run(program: Program) -> tuple[FakeRuntime, Any]:
    rt = FakeRuntime(program)
    return rt, compile_program(program, rt)(*[v.name for v in program.params])


@pytest.mark.parametrize("world", [1, 8])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("backend", ["cpu", "cuda", "hpu-lazy", "hpu-eager"])
def test_every_program_calls_what_its_text_says_in_that_order(
    backend: str, accumulation: int, world: int, lowered: Callable[..., Module]
) -> None:
    module = lowered(backend, "bf16", world, accumulation=accumulation)
    assert ("capture=graph" in str(module)) == (backend == "cuda" and accumulation == world == 1)
    for program in module.programs:
        rt, results = run(program)
        called = [" ".join(call[:2]) if call[0] in ("enter", "launch") else call[0] for call in rt.calls]
        assert called == [*expected(program.ops)]
        assert isinstance(results, tuple)
        assert len(results) == len(program.results)


def test_marks_run_as_often_as_the_text_says(lowered: Callable[..., Module]) -> None:
    rt, _ = run(lowered("hpu-lazy", accumulation=16)["train"])
    assert rt.calls.count(("mark",)) == 2 * 16 + 1  # after forward and backward; after the update
    rt, _ = run(lowered("hpu-lazy")["train"])
    assert rt.calls.count(("mark",)) == 3


def test_operands_and_attributes_arrive_as_the_text_has_them(lowered: Callable[..., Module]) -> None:
    forward = run(lowered("hpu-eager", "bf16", label_smoothing=0.1)["train"])[0].calls
    given = next(call[2] for call in forward if call[0] == "model_forward__compiled")
    assert given == {"attention": "fused_sdpa", "autocast": "bf16", "label_smoothing": 0.1, "reads": "pooled"}
    program = lowered("cpu", "bf16", accumulation=4, label_smoothing=0.1, clip=False)["train"]
    rt, results = run(program)
    calls = {call[0]: call[1:] for call in rt.calls if len(call) == 3}
    narrow, *_, total = calls["model_grad__autograd"][0]
    assert narrow.startswith("params_narrow__reference#")
    assert total == "grads_zero__buffer#0" or total.startswith("model_grad__autograd#")
    assert calls["model_grad__autograd"][1] == {
        "label_smoothing": 0.1, "reads": "pooled", "self_attention": "products",
    }  # fmt: skip
    assert calls["grads_scale__buffer"][1] == {"by": 1 / 4}
    assert calls["grads_all_reduce__identity"][1] == {"group": "dp"}
    params, opt, grads, hyper, ok = calls["opt_update__torch_fused"][0]
    assert (params, opt, hyper) == ("p", "o", "hyper")
    assert grads.startswith("grads_all_reduce__identity#")
    assert ok.startswith("health_check__reference#")
    assert results[0].startswith("opt_update__torch_fused#")


def test_the_source_is_readable(lowered: Callable[..., Module]) -> None:
    assert source(lowered("hpu-lazy")["eval"]) == dedent("""\
        @rt.region
        def apply(m, p, x):
            y = rt.model_apply__eager(p, x, attention='fused_sdpa', reads='pooled')
            m1_ = rt.metrics_count__reference(m, y, x)
            return m1_


        def eval(p, c, m):
            \"""lowered:hpu-lazy @eval\"""
            h, c1 = rt.data_next__reference(c, split='eval')
            x = rt.data_put__reference(h, pixels='bytes')
            m1 = apply(m, p, x)
            rt.mark()
            return c1, m1
    """)


def test_a_single_result_is_a_tuple_too() -> None:
    program = sealed("lowered:toy @p(%m: metrics) [\n  return %m\n]\n")
    assert compile_program(program, None)("state") == ("state",)


def test_names_that_mean_something_to_python_are_written_otherwise() -> None:
    program = sealed("""
        lowered:toy @p(%def: metrics, %def_: scalar<f32>, %rt: scalar<f32>, %range: scalar<f32>, %p: scalar<f32>) [
          %in = repeat %def {n=2} (%None: metrics) [
            %class = rt.region {name=for} [
              %class_ = metrics.add %None, %def_ {impl=r, name=loss} : metrics
              yield %class_
            ]
            %_ = rt.region {name=p} [
              %a = metrics.add %class, %rt {impl=r, name=loss} : metrics
              yield %a
            ]
            %del = rt.region {name=go-on/2} [
              %b = metrics.add %_, %range {impl=r, name=loss} : metrics
              %go_on_2 = metrics.add %b, %p {impl=r, name=loss} : metrics
              yield %go_on_2
            ]
            yield %del
          ]
          return %in
        ]
    """)
    rt, results = run(program)
    values = [call[1] for call in rt.calls if call[0] == "metrics_add__r"]
    assert [value for _, value in values] == ["def_", "rt", "range", "p"] * 2
    state = ["def", *(f"metrics_add__r#{i}" for i in range(8))]
    assert [metrics for metrics, _ in values] == state[:-1]
    assert results == (state[-1],)
    assert [call[1] for call in rt.calls if call[0] == "enter"] == ["for_", "p_", "go_on_2"] * 2


def test_a_loop_that_carries_nothing_runs() -> None:
    program = sealed("""
        lowered:toy @p(%p: params<f32>, %x: batch<dev>, %m: metrics) [
          repeat {n=3} [
            %y = model.apply %p, %x {impl=r} : logits
            yield
          ]
          return %m
        ]
    """)
    rt, results = run(program)
    assert [call[0] for call in rt.calls] == ["model_apply__r"] * 3
    assert results == ("m",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/16", 1 / 16), ("1/1", 1.0), ("0.1", 0.1), ("1e-05", 1e-05), ("16", 16),
        ("dp", "dp"), ("nan", "nan"), ("inf", "inf"), ("-infinity", "-infinity"), ("1e999", "1e999"),
        ("1/0", "1/0"), ("007", 7.0), ("1/2/3", "1/2/3"), ('"it\'s \\"so\\"\\n"', "it's \"so\"\n"),
    ],
)  # fmt: skip
def test_attributes_become_python_values(text: str, value: object) -> None:
    program = sealed(HEAD + f"  %a = metrics.add %m, %s {{impl=r, name={text}}} : metrics\n  return %a\n]\n")
    rt, _ = run(program)
    assert rt.calls == [("metrics_add__r", ("m", "s"), {"name": value})]


def test_only_a_sealed_program_becomes_python() -> None:
    with pytest.raises(VitcoreError) as refused:
        source(parse("lowering:toy @p(%m: metrics) [\n  return %m\n]\n"))
    assert str(refused.value) == "@p is not sealed, so it cannot become Python; lower it first"


def test_the_traceback_of_a_failing_kernel_shows_the_generated_line(lowered: Callable[..., Module]) -> None:
    program = lowered("cpu", accumulation=2)["train"]
    rt = FakeRuntime(program)

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    rt.model_grad__autograd = fails  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError) as raised:
        compile_program(program, rt)(*range(6))
    shown = "".join(traceback.format_exception(raised.value))
    assert 'File "<vitcore lowered:cpu @train>", line ' in shown
    assert "loss, gb_ = rt.model_grad__autograd(p, x, kf, ga, " in shown
    assert "in train\n" in shown
    frame = next(f for f in traceback.extract_tb(raised.value.__traceback__) if f.name == "forward_backward")
    assert source(program).splitlines()[(frame.lineno or 0) - 1].strip() == frame.line
