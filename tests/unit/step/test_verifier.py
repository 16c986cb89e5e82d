"""The verifier refuses what breaks a rule, in one line that names op, value, rule and remedy.

The errors are planted as small patches: `planted/V<n>.txt` holds, for each rule, what is wrong (and in which of
`planted/programs/`), the lines that make it so, and after `!` the whole message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vitcore.step.build import StepSpec, build
from vitcore.step.ir import Group, Module, Op, Program, Ty, Value
from vitcore.step.text import parse
from vitcore.step.verify import Illegal, verify, verify_module

PLANTED = Path(__file__).parent / "planted"
PROGRAMS = {path.stem: path.read_text() for path in (PLANTED / "programs").glob("*.txt")}
RULES = [f"V{n}" for n in range(1, 15)]


@dataclass(frozen=True)
class Planted:
    """One planted error: the patch that makes it, and the message that refuses it."""

    rule: str
    title: str
    base: str
    hunks: tuple[str, ...]
    message: str

    @property
    def text(self) -> str:
        """The program with the error in it."""
        text = PROGRAMS[self.base]
        for hunk in self.hunks:
            lines = hunk.splitlines()
            old = "".join(line[1:] + "\n" for line in lines if line[0] in " -")
            new = "".join(line[1:] + "\n" for line in lines if line[0] in " +")
            assert text.count(old) == 1, f"{self.rule} {self.title}: the patch does not fit\n{old}"
            text = text.replace(old, new)
        return text


def planted() -> list[Planted]:
    cases = []
    for rule in RULES:
        path = PLANTED / f"{rule}.txt"
        for case in path.read_text().split("\n\n") if path.exists() else []:
            head, _, rest = case.strip().partition("\n")
            patch, _, message = rest.rpartition("\n! ")
            title, base = re.fullmatch(r"# (.*) \((\w+)\)", head).groups()  # type: ignore[union-attr]
            cases.append(Planted(rule, title, base, tuple(patch.split("\n@@\n")), message))
    return cases


CASES = planted()


@pytest.mark.parametrize("name", PROGRAMS)
def test_without_the_error_the_program_is_legal(name: str) -> None:
    assert verify(parse(PROGRAMS[name])) == parse(PROGRAMS[name])


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.rule}-{c.title.replace(' ', '_')}")
def test_a_planted_error_is_refused_with_this_message(case: Planted) -> None:
    with pytest.raises(Illegal) as refused:
        verify(parse(case.text))
    assert str(refused.value) == case.message
    assert refused.value.rule == case.rule


def test_every_rule_has_a_planted_error() -> None:
    # V14 has no text: what it refuses cannot be written down (below).
    assert {case.rule for case in CASES} == set(RULES) - {"V14"}


def test_no_message_is_planted_twice_under_one_title() -> None:
    assert len({(c.rule, c.title) for c in CASES}) == len(CASES)


METRICS = Value("m", Ty("metrics"))


def unread(where: str, why: str = "as another one") -> str:
    return f"V14 ({where}): the text does not read back {why}; rename what the text cannot hold"


def program(name: str = "log", level: str = "step", m: Value = METRICS, back: Value = METRICS) -> Program:
    return Program(name, level, (m,), (Op("return", (back,)),))


MY_METRICS, NUMBERED = Value("my m", Ty("metrics")), Value("1", Ty("metrics"))
UNREADABLE = {
    "a name with a space": (
        program(m=MY_METRICS, back=MY_METRICS),
        unread("@log", "(program text, line 1: expected :, found 'm')"),
    ),
    "a name that is a number": (
        program(m=NUMBERED, back=NUMBERED),
        unread("@log", "(program text, line 1: cannot read '%1: metrics)')"),
    ),
    "an operand of another type": (program(back=Value("m", Ty("metrics", derived=True))), unread("@log")),
    "a level of two words": (
        program(level="lowering:my device"),
        unread("@log", "(program text, line 1: expected <symbol>, found 'device')"),
    ),
}


@pytest.mark.parametrize("title", UNREADABLE)
def test_what_the_text_cannot_hold_is_refused(title: str) -> None:
    broken, message = UNREADABLE[title]
    with pytest.raises(Illegal) as refused:
        verify(broken)
    assert str(refused.value) == message
    assert refused.value.rule == "V14"


# ---- modules ----


def with_program(module: Module, name: str, *edits: tuple[str, str]) -> Module:
    """The module with text replaced in one of its programs."""
    text = str(module[name])
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return replace(module, programs=tuple(parse(text) if p.name == name else p for p in module.programs))


MODULE = build(StepSpec(name="recipe", optimizer="sgdm"))
STATE = "(params<f32>, opt<sgdm>, cursor, key, metrics)"
DISAGREEING = {
    "init makes less": (
        with_program(MODULE, "init", ("  %m = metrics.zero : metrics\n", ""), (", %m\n", "\n")),
        f"V13 (@init): returns (params<f32>, opt<sgdm>, cursor, key) where the step's state is {STATE}; "
        "make it exactly that state",
    ),
    "init makes another order": (
        with_program(MODULE, "init", ("return %p, %o", "return %o, %p")),
        f"V13 (@init): returns (opt<sgdm>, params<f32>, cursor, key, metrics) where the step's state is {STATE}; "
        "make it exactly that state",
    ),
    "init makes another optimizer": (
        with_program(MODULE, "init", ("{kind=sgdm} : opt<sgdm>", "{kind=adamw} : opt<adamw>")),
        f"V13 (@init): returns (params<f32>, opt<adamw>, cursor, key, metrics) where the step's state is {STATE}; "
        "make it exactly that state",
    ),
    "restore returns more": (
        with_program(
            MODULE, "restore", ("return", "%g = grads.zero %p : grads<f32 sum partial>\n  return"), ("%m\n", "%m, %g\n")
        ),
        "V13 (@restore): returns (params<f32>, opt<sgdm>, cursor, key, metrics, grads<f32 sum partial>) where the "
        f"step's state is {STATE}; make it exactly that state",
    ),
    "restore takes what is no state": (
        with_program(MODULE, "restore", (") [", ", %hyper: hyper) [")),
        "V13 (@restore): takes (params<f32>, opt<sgdm>, cursor, key, metrics, hyper) where the step's state is "
        f"{STATE}; make it exactly that state",
    ),
    "train borrows what should come back": (
        with_program(
            MODULE, "train", ("%o: opt<sgdm>,", "%o: opt<sgdm>, %q: params<f32>,"), ("grads.zero %p", "grads.zero %q")
        ),
        f"V13 (@train): returns {STATE} where the step's state is (params<f32>, opt<sgdm>, params<f32>, cursor, key, "
        "metrics); make it exactly that state",
    ),
    "no eval": (
        replace(MODULE, programs=tuple(p for p in MODULE.programs if p.name != "eval")),
        "V13 (@eval): is there 0 times; a module has one of each program",
    ),
    "two logs": (
        replace(MODULE, programs=(*MODULE.programs, MODULE["log"])),
        "V13 (@log): is there 2 times; a module has one of each program",
    ),
    "a name of two words": (
        replace(MODULE, name="my recipe"),
        unread("module @my recipe", "(program text, line 1: expected <symbol>, found '{')"),
    ),
    "a group of two words": (
        replace(MODULE, groups=(Group("no decay"),)),
        unread(
            "module @recipe",
            "(program text, line 2: expected {lr=number, pattern=text, weight_decay=number} for group @no, "
            "found nothing)",
        ),
    ),
}


@pytest.mark.parametrize("title", DISAGREEING)
def test_a_module_whose_programs_disagree_is_refused(title: str) -> None:
    module, message = DISAGREEING[title]
    with pytest.raises(Illegal) as refused:
        verify_module(module)
    assert str(refused.value) == message


def test_the_errors_of_a_program_are_those_of_its_module() -> None:
    unclipped = with_program(
        MODULE,
        "train",
        ("  %gr = ", "  %z = grads.zero %p : grads<f32 sum partial>\n  %gr = "),
        ("%gc, %hyper, %ok", "%z, %hyper, %ok"),
    )
    with pytest.raises(Illegal, match=r"^V4 opt\.update \(@train\[8\]\): %p %o %z %hyper %ok updates from "):
        verify_module(unclipped)
