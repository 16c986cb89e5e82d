"""The text of programs: what is printed reads back as the same, and what is malformed is refused by line."""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitcore.step.build import OPTIMIZERS, StepSpec, build
from vitcore.step.ir import FLOW, Group, Module, Op, Program, Ty, Value
from vitcore.step.ops import OPS
from vitcore.step.text import ParseError, parse, parse_module

BACKENDS = ("cpu", "cuda", "hpu-lazy", "hpu-eager")
SPECS = [
    StepSpec(name="plain", optimizer="sgdm"),
    StepSpec(name="vit-b16_in1k.v2", optimizer="adamw", accumulation=16, clip=False, label_smoothing=0.1),
    StepSpec(
        name="groups", optimizer="adamw", groups=(Group("no-decay", r"(\.bias|norm\d+)$", 1.5, 0.0), Group("all"))
    ),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_neutral_modules_and_programs_read_back(spec: StepSpec) -> None:
    module = build(spec)
    assert parse_module(str(module)) == module
    assert all(parse(str(program)) == program for program in module.programs)


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("backend", BACKENDS)
def test_lowered_modules_and_programs_read_back(backend: str, spec: StepSpec, lowered: Callable[..., Module]) -> None:
    module = lowered(backend, "bf16", 8, **vars(spec))
    assert parse_module(str(module)) == module
    assert all(parse(str(program)) == program for program in module.programs)


GROUPS = st.builds(
    Group,
    st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True),
    st.text(),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False),
)


@settings(max_examples=25, deadline=None)
@given(
    optimizer=st.sampled_from([*OPTIMIZERS]),
    accumulation=st.integers(1, 1000),
    clip=st.booleans(),
    label_smoothing=st.floats(0, 1),
    groups=st.lists(GROUPS, min_size=1, max_size=3).map(tuple),
    backend=st.sampled_from(BACKENDS),
)
def test_any_legal_module_reads_back(lowered: Callable[..., Module], backend: str, **spec: object) -> None:
    for module in (build(StepSpec(name="any", **spec)), lowered(backend, **spec)):  # type: ignore[arg-type]
        again = parse_module(str(module))
        assert again == module
        assert str(again) == str(module)


WORDS = st.one_of(
    st.sampled_from(["f32", "1/16", "a//b", "$^|*+-", "..", "a:b", "lowering:x-y.z", "module", "group", "0:1:2"]),
    st.text("aZ0_.+*/|^$-", min_size=1, max_size=4).filter(lambda w: not w.startswith("//")),
)
NAMES = st.sampled_from(["_", "__", "a", "a_", "A9", "b", "c1", "for", "p", "rt", "x" * 40])
TYPES = st.builds(Ty, WORDS.filter(lambda w: w != "derived"), st.lists(WORDS, max_size=3).map(tuple), st.booleans())
# Any text at all, and often what the printer must quote: quotes, backslashes, line ends, comments, colons, nothing.
TEXTS = st.one_of(WORDS, st.text(max_size=6), st.text('"\\\n\r\t//:{}=, é%@', max_size=6))
ATTRS = st.dictionaries(WORDS, TEXTS, max_size=3)


@st.composite
def arbitrary_programs(draw: st.DrawFn) -> Program:
    """Programs that mean nothing: any names, types, attributes and nesting that the syntax can hold."""
    env: dict[str, Value] = {}

    def declared(types: Sequence[Ty]) -> tuple[Value, ...]:
        names = draw(st.lists(NAMES, min_size=len(types), max_size=len(types), unique=True))
        made = tuple(map(Value, names, types))
        env.update({v.name: v for v in made})
        return made

    def operands() -> tuple[Value, ...]:
        known = st.sampled_from(sorted(env)) if env else NAMES
        names = draw(st.lists(st.one_of(known, NAMES), max_size=3))
        return tuple(env.get(n, Value(n, Ty("undefined"))) for n in names)

    def op(depth: int) -> Op:
        name = draw(st.one_of(WORDS, st.sampled_from(sorted(FLOW | OPS.keys()))))
        args, attrs = operands(), draw(ATTRS)
        if depth < 3 and draw(st.integers(0, 3)) == 0:
            binds = declared(draw(st.lists(TYPES, max_size=2)))
            body = tuple(op(depth + 1) for _ in range(draw(st.integers(1, 3))))
            return Op(name, args, declared([a.ty.plain for a in body[-1].args]), attrs, binds, body)
        return Op(name, args, declared(draw(st.lists(TYPES, max_size=2))), attrs)

    level, name, params = draw(WORDS), draw(NAMES), declared(draw(st.lists(TYPES, max_size=3)))
    ops = tuple(op(0) for _ in range(draw(st.integers(0, 4))))
    return Program(name, level, params, ops, draw(ATTRS))


@settings(max_examples=100, deadline=None)
@given(arbitrary_programs())
def test_any_program_that_the_syntax_can_hold_reads_back(program: Program) -> None:
    assert parse(str(program)) == program


@given(TEXTS)
def test_any_attribute_value_reads_back(text: str) -> None:
    program = Program("p", "step", (), (Op("rt.mark", attrs={"after": text}), Op("return")))
    assert parse(str(program)) == program
    assert str(program).isascii()
    assert len(str(program).splitlines()) == 4


def test_an_op_without_operands_does_not_take_the_next_lines_results() -> None:
    program = parse("step @p() [\n  rt.mark\n  %m = metrics.zero : metrics\n  return %m\n]\n")
    assert [op.name for op in program.ops] == ["rt.mark", "metrics.zero", "return"]
    assert program.ops[0].args == ()


def test_comments_and_spaces_are_free() -> None:
    spaced = "step @p( %m:metrics )[ // a comment\n\n  return   %m // %x\n ]"
    assert parse(spaced) == parse("step @p(%m: metrics) [\n  return %m\n]\n")


ONE = "step @p(%m: metrics) [\n  {}\n  return %m\n]\n"
MALFORMED = [
    ("", "line 1: expected <word>, found 'the end'"),
    ("\n\nstep p() []", "line 3: expected <symbol>, found 'p'"),
    ("step @p %m", "line 1: expected (, found '%m'"),
    ("step @p(%m metrics) []", "line 1: expected :, found 'metrics'"),
    ("step @p(%m: metrics, ) []", "line 1: expected <value>, found ')'"),
    ("step @p(%m: grads<f32, sum>) []", "line 1: expected <word>, found ','"),
    ("step @p(%m: derived) []", "line 1: expected <, found ')'"),
    ("step @p() [\n  return\n", "line 3: expected <word>, found 'the end'"),
    ("step @p() [\n  return\n]\nstep @q() []", "line 4: expected the end of the program, found 'step'"),
    (ONE.format("%a = = %m"), "line 2: expected <word>, found '='"),
    (ONE.format("%a metrics.zero : metrics"), "line 2: expected =, found 'metrics.zero'"),
    (ONE.format("%a = metrics.zero"), "line 2: expected 1 result types for metrics.zero, found 0"),
    (ONE.format("%a = metrics.zero : metrics, flag"), "line 2: expected 1 result types for metrics.zero, found 2"),
    (ONE.format("%a, %b = repeat %m [ yield %m ]"), "line 2: expected 2 result types for repeat, found 1"),
    (ONE.format("rt.mark {after}"), "line 2: expected =, found '}'"),
    (ONE.format("rt.mark {after=}"), "line 2: expected <word>, found '}'"),
    (ONE.format("rt.mark {after=a b=c}"), "line 2: expected ,, found 'b'"),
    (ONE.format("rt.mark {after=a, after=b}"), "line 2: expected each attribute once, found 'after'"),
    (ONE.format(r'rt.mark {after="\."}'), r"""line 2: expected a string with the escapes of JSON, found '"\\."'"""),
    (ONE.format('rt.mark {after="a'), "line 2: cannot read '\"a\\n  return '"),
    (ONE.format("%1 = metrics.zero : metrics"), "line 2: cannot read '%1 = metrics'"),
    (ONE.format("rt.mark {after=é}"), "line 2: cannot read 'é}\\n  return '"),
    (ONE.format("rt.region [ ]"), "line 2: expected an op in the block of rt.region, found none"),
    ("step @p() " + "[ a " * 99, "line 1: expected at most 32 blocks inside each other, found '['"),
]
GROUP = "expected {lr=number, pattern=text, weight_decay=number} for group @all, found"
MALFORMED_MODULES = [
    ("step @p() []", "line 1: expected module, found 'step'"),
    ("module recipe", "line 1: expected <symbol>, found 'recipe'"),
    ("module @r\ngroup @all", f"line 2: {GROUP} nothing"),
    ("module @r\ngroup @all {lr=1, pattern=a}", f"line 2: {GROUP} {{lr=1, pattern=a}}"),
    (
        "module @r\ngroup @all {lr=fast, pattern=a, weight_decay=1}",
        f"line 2: {GROUP} {{lr=fast, pattern=a, weight_decay=1}}",
    ),
    ("module @r\n%x", "line 2: expected <word>, found '%x'"),
]


@pytest.mark.parametrize(("text", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_program_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(ParseError) as refused:
        parse(text)
    assert str(refused.value) == f"program text, {message}"


@pytest.mark.parametrize(("text", "message"), MALFORMED_MODULES, ids=range(len(MALFORMED_MODULES)))
def test_a_malformed_module_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(ParseError) as refused:
        parse_module(text)
    assert str(refused.value) == f"program text, {message}"


@st.composite
def damaged(draw: st.DrawFn, texts: Sequence[str]) -> str:
    """A valid text after a few cuts, copies and insertions."""
    text = draw(st.sampled_from(texts))
    pieces = st.one_of(st.text(string.punctuation + " \n\t0aé", max_size=4), st.sampled_from(text.split()))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(text)))
        end = min(len(text), at + draw(st.integers(0, 40)))
        there = text[at:end] * draw(st.integers(0, 2))
        text = text[:at] + draw(pieces) + there + text[end:]
    return text


NEUTRAL = [str(build(spec)) for spec in SPECS]


@settings(max_examples=200, deadline=None)
@given(text=st.one_of(damaged(NEUTRAL), st.text(string.punctuation + " \na0", max_size=30)))
def test_no_text_is_answered_with_anything_but_a_program_or_a_parse_error(text: str) -> None:
    try:
        module = parse_module(text)
    except ParseError as refused:
        assert str(refused).startswith("program text, line ")
        assert "\n" not in str(refused)
        return
    assert parse_module(str(module)) == module
