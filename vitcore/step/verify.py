"""The verifier: what makes a program legal, rule by rule, with messages that name op, value, rule and remedy.

V1 defined before use, once. V2 operand and result types. V3 linear values consumed exactly once, borrowed only before.
V4 gradients reduced once and scaled once. V5 randomness never reused. V6 lowering's ops and attributes only once
lowering has begun. V7 no wait for the host inside a region. V8 what changes from step to step is in `hyper`. V9 a sealed
program has an implementation for every op. V10 loops carry what they yield. V11 on a lazy backend each region is flushed
exactly once. V12 no collective inside `repeat`. V13 one result for each consumed state parameter, in order. V14 the text
round-trips. Each has a run-time twin or a proof by construction; see docs/program.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from vitcore.errors import VitcoreError
from vitcore.step.ir import FLOW, Module, Op, Program, Ty, Value
from vitcore.step.ops import LOWERED_ATTRS, OPS, Bad
from vitcore.step.text import parse

# Names of what changes from step to step: as an attribute it would be frozen into a compiled step (rule V8).
STEPWISE = frozenset(
    {"lr", "learning_rate", "weight_decay", "momentum", "beta1", "beta2", "eps", "max_norm", "decay", "seed", "step",
     "epoch"}
)  # fmt: skip


class Illegal(VitcoreError):
    """A program breaks a rule of the verifier; `rule` is V1 to V14."""

    def __init__(self, rule: str, where: str, why: str) -> None:
        super().__init__(f"{rule} {where}: {why}")
        self.rule = rule


@dataclass
class _Scope:
    """What is known while walking a program from top to bottom."""

    program: Program
    loop: dict[str, int] = field(default_factory=dict)  # value name -> id of the loop that defines it
    spent: dict[str, str] = field(default_factory=dict)  # consumed value -> the op that consumed it
    held: dict[str, frozenset[str]] = field(default_factory=dict)  # tape -> the parameters it borrows
    made: list[Value] = field(default_factory=list)
    streams: set[tuple[int, str]] = field(default_factory=set)
    loops: int = 0

    def fail(self, rule: str, path: str, op: Op | None, why: str) -> NoReturn:
        name = f"{op.name} " if op else ""
        raise Illegal(rule, f"{name}({path})", why)

    def define(self, v: Value, loop: int, path: str, op: Op | None) -> None:
        if v.name in self.loop:
            self.fail("V1", path, op, f"{v} is defined twice; give one of the two another name")
        self.loop[v.name] = loop
        self.made.append(v)

    def use(self, v: Value, takes: bool, loop: int, path: str, op: Op) -> None:
        if v.name not in self.loop:
            self.fail("V1", path, op, f"{v} is not defined before this op; define it or correct the name")
        if v.name in self.spent:
            rule = "V5" if v.ty.kind == "key" else "V3"
            fix = "split the key with rng.split" if rule == "V5" else "use the value that op returned"
            self.fail(rule, path, op, f"{v} was already consumed by {self.spent[v.name]}; {fix}")
        if not (takes and v.ty.linear):
            return
        if self.loop[v.name] != loop:
            self.fail("V3", path, op, f"{v} is consumed inside a loop that does not carry it; add it to what is carried")
        for tape, params in self.held.items():
            if v.name in params and tape not in self.spent and op.name not in ("rt.region", "yield"):
                self.fail("V3", path, op, f"{v} is borrowed by the live tape %{tape}; run model.backward on it first")
        self.spent[v.name] = op.name


def verify(program: Program) -> Program:
    """Return the program if it is legal; raise `Illegal` naming op, value, rule and remedy if it is not."""
    scope, path = _Scope(program), f"@{program.name}"
    for v in program.params:
        scope.define(v, 0, path, None)
    if not program.ops or program.ops[-1].name != "return":
        scope.fail("V13", path, None, "does not end in a return; return one result for each consumed parameter")
    _block(scope, program.ops, path, 0, "")
    params = {v.name for v in program.params}
    for v in scope.made:
        if v.ty.linear and v.name not in scope.spent and v.name not in params:
            what = "is dropped: it must be consumed exactly once (carry, return or consume it)"
            scope.fail("V3", path, None, f"{v} ({v.ty}) {what}")
    _check_results(scope)
    if program.attrs.get("lazy") == "yes" and program.sealed:
        _check_marks(scope, program.ops, path)
    text = str(program)
    if parse(text) != program:
        scope.fail("V14", path, None, "the text does not read back as the same program; rename what the text cannot hold")
    return program


def verify_module(module: Module) -> Module:
    """Verify every program, and that the programs agree on the state that crosses between them."""
    for program in module.programs:
        verify(program)
    state, saved = [v.ty for v in module.state], [v.ty for v in module.saved]
    for name, program, want in (
        ("init", module["init"].results, [t.plain for t in state]),
        ("restore", module["restore"].results, [t.plain for t in state]),
        ("restore", module["restore"].params, saved),
    ):
        have = [v.ty for v in program]
        if have != want:
            shown = f"{_types(have)} where the step's state is {_types(want)}"
            raise Illegal("V13", f"(@{name})", f"has {shown}; init and restore must make exactly that state")
    return module


def _types(types: Sequence[Ty]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


def _block(scope: _Scope, ops: Sequence[Op], path: str, loop: int, region: str) -> None:
    for i, op in enumerate(ops):
        at = f"{path}[{i}]"
        last = i == len(ops) - 1
        if op.name in ("yield", "return") and not last:
            scope.fail("V10", at, op, "is not the last op of its block; move it to the end")
        if op.name in FLOW:
            _flow(scope, op, at, loop, region)
        else:
            _plain(scope, op, at, loop, region)
        for v in op.outs:
            scope.define(v, loop, at, op)


def _plain(scope: _Scope, op: Op, at: str, loop: int, region: str) -> None:
    row = OPS.get(op.name)
    if row is None:
        scope.fail("V2", at, op, "is no op of the table in vitcore/step/ops.py; correct the name")
    for j, a in enumerate(op.args):
        scope.use(a, j in row.takes, loop, at, op)
    for name in op.attrs:
        if name in STEPWISE:
            scope.fail("V8", at, op, f"attribute {name!r} changes from step to step; pass it in %hyper")
        if name in LOWERED_ATTRS:
            if scope.program.neutral:
                scope.fail("V6", at, op, f"attribute {name!r} belongs to lowering; remove it from the neutral program")
        elif name not in row.attrs:
            scope.fail("V2", at, op, f"has no attribute {name!r}; it takes {', '.join(row.attrs) or 'none'}")
    if region and "host" in row.effects:
        scope.fail("V7", at, op, f"waits for the host inside region {region!r}; move it between regions")
    if loop and "collective" in row.effects:
        scope.fail("V12", at, op, "is a collective inside repeat; reduce once, after the loop")
    try:
        want = row.infer([a.ty.plain for a in op.args], op.attrs)
    except Bad as bad:
        scope.fail(bad.rule, at, op, f"{_names(op)}{bad}")
    if want != [v.ty for v in op.outs]:
        have = _types([v.ty for v in op.outs])
        scope.fail("V2", at, op, f"gives {_types(want)} but is declared {have}; declare what it gives")
    if scope.program.sealed and "impl" not in op.attrs:
        scope.fail("V9", at, op, "has no implementation; run choose_implementations before seal")
    if op.name == "rng.split":
        stream = (loop, op.attrs.get("stream", ""))
        if stream in scope.streams:
            scope.fail("V5", at, op, "draws from a stream that was drawn from already; give it another {stream=...}")
        scope.streams.add(stream)
    if op.outs and op.outs[-1].ty.kind == "tape":
        scope.held[op.outs[-1].name] = frozenset(a.name for a in op.args if a.ty.kind == "params")


def _names(op: Op) -> str:
    return " ".join(map(str, op.args)) + " " if op.args else ""


def _flow(scope: _Scope, op: Op, at: str, loop: int, region: str) -> None:
    if op.name.startswith("rt.") and scope.program.neutral:
        scope.fail("V6", at, op, "may be placed by lowering alone; remove it from the neutral program")
    if op.name == "rt.mark":
        if region:
            scope.fail("V11", at, op, f"stands inside region {region!r}; marks stand between regions")
        return
    for a in op.args:
        scope.use(a, True, loop, at, op)
    if op.name in ("yield", "return"):
        return
    inner = loop
    if op.name == "repeat":
        if not op.attrs.get("n", "").isdigit() or int(op.attrs["n"]) < 1:
            scope.fail("V10", at, op, "has no count; write {n=...} with a whole number of at least 1")
        scope.loops += 1
        inner = scope.loops
    for v in op.binds:
        scope.define(v, inner, at, op)
    if not op.body or op.body[-1].name != "yield":
        scope.fail("V10", at, op, "has a block that does not end in a yield; yield what it carries")
    _block(scope, op.body, f"{at} {op.name}", inner, op.attrs.get("name", "region") if op.name == "rt.region" else region)
    yields = op.body[-1].args
    if op.name == "repeat":
        carried, got = [v.ty for v in op.binds], [v.ty for v in yields]
        given = [a.ty.plain for a in op.args]
        if not carried == got == given:
            scope.fail("V10", at, op, f"takes {_types(given)}, carries {_types(carried)}, yields {_types(got)}: not one")
    for y, v in zip(yields, op.outs, strict=False):
        if y.name in scope.held:  # a tape leaves its block: its borrow goes with it
            scope.held[v.name] = scope.held[y.name]
    if [y.ty.plain for y in yields] != [v.ty for v in op.outs]:
        scope.fail("V10", at, op, "does not return what its block yields; give one result for each yielded value")


def _check_results(scope: _Scope) -> None:
    program = scope.program
    consumed = [v for v in program.params if v.name in scope.spent and v.ty.linear]
    results = [v.ty.plain for v in program.results]
    state = [t for t in results if t.linear]
    path = f"@{program.name}"
    if program.name == "init":  # makes the state; verify_module holds it against the step's
        return
    if results[: len(state)] != state:
        scope.fail("V13", path, program.ops[-1], "returns free values among the state; return the state first")
    if program.name == "restore":  # adds what is derived, after what was saved
        state = state[: len(consumed)]
    if state != [v.ty.plain for v in consumed]:
        why = f"returns {_types(state)} for consumed {_types([v.ty for v in consumed])}"
        scope.fail("V13", path, program.ops[-1], f"{why}; return exactly one result for each, in order")


def _check_marks(scope: _Scope, ops: Sequence[Op], path: str) -> None:
    """Rule V11: after each region exactly one of a mark, a kernel that flushed at its end, or one that flushes first."""
    for i, op in enumerate(ops):
        if op.name == "repeat":
            _check_marks(scope, op.body, f"{path}[{i}] repeat")
        if op.name != "rt.region":
            continue
        work = [o for o in op.body if o.name != "yield"]
        after = ops[i + 1] if i + 1 < len(ops) else None
        flushed = work[-1].flushes[2] > 0
        flushed_next = after is not None and after.name == "rt.region" and after.body[0].flushes[0] > 0
        marked = after is not None and after.name == "rt.mark"
        name, at = op.attrs.get("name", "region"), f"{path}[{i}]"
        if marked + flushed + flushed_next == 0:
            scope.fail("V11", at, op, f"{name!r} is never flushed; put an rt.mark after it")
        if marked + flushed + flushed_next > 1:
            scope.fail("V11", at, op, f"{name!r} is flushed twice, by its kernel and by a mark; remove the mark")
        for j, o in enumerate(work[:-1]):
            if sum(o.flushes[1:]):
                scope.fail("V11", f"{at}[{j}]", o, "flushes inside a region that goes on after it; end the region there")
