"""The verifier: what makes a program legal, rule by rule, with messages that name op, value, rule and remedy.

V1 defined before use, once. V2 operand and result types. V3 linear values consumed exactly once, borrowed only before.
V4 gradients reduced once and scaled once. V5 randomness never reused. V6 lowering's ops and attributes only once
lowering has begun. V7 no wait for the host inside a region. V8 what changes from step to step is in `hyper`. V9 a
sealed program has an implementation for every op. V10 loops carry what they yield. V11 on a lazy backend each region is
flushed, and no mark repeats the flush of a kernel. V12 no collective inside `repeat`. V13 one result for each consumed
state parameter, in order. V14 the text round-trips. Each has a run-time twin or a proof by construction; see
docs/program.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from vitcore.errors import VitcoreError, nearest
from vitcore.step.ir import FLOW, Module, Op, Program, Ty, Value
from vitcore.step.ops import LOWERED_ATTRS, OPS, Bad
from vitcore.step.text import ParseError, parse, parse_module

# Names of what changes from step to step: as an attribute it would be frozen into a compiled step (rule V8).
STEPWISE = frozenset(
    {"lr", "learning_rate", "weight_decay", "momentum", "beta1", "beta2", "eps", "max_norm", "decay", "seed", "step",
     "epoch"}
)  # fmt: skip

# What the ops that hold a block or end one may say about themselves.
_FLOW_ATTRS = {"repeat": ("n",), "rt.region": ("name", "capture"), "rt.mark": ("after",)}
_PROGRAMS = ("init", "train", "eval", "log", "restore")


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
    made: list[tuple[Value, str, Op | None]] = field(default_factory=list)
    closed: dict[str, str] = field(default_factory=dict)  # value of a block that has ended -> the op with that block
    streams: set[str] = field(default_factory=set)
    used: set[str] = field(default_factory=set)
    regions: set[str] = field(default_factory=set)
    loops: int = 0

    def fail(self, rule: str, path: str, op: Op | None, why: str) -> NoReturn:
        name = f"{op.name} " if op else ""
        raise Illegal(rule, f"{name}({path})", why)

    def define(self, v: Value, loop: int, path: str, op: Op | None) -> None:
        if v.name in self.loop:
            self.fail("V1", path, op, f"{v} is defined twice; give one of the two another name")
        self.loop[v.name] = loop
        self.made.append((v, path, op))

    def use(self, v: Value, takes: bool, loop: int, path: str, op: Op) -> None:
        if v.name not in self.loop:
            self.fail("V1", path, op, f"{v} is not defined before this op; define it or correct the name")
        if v.name in self.closed:
            self.fail("V1", path, op, f"{v} lives inside the {self.closed[v.name]} alone; yield it and use that result")
        if v.name in self.spent:
            rule = "V5" if v.ty.kind == "key" else "V3"
            fix = "split the key with rng.split" if rule == "V5" else "use the value that op returned"
            self.fail(rule, path, op, f"{v} was already consumed by {self.spent[v.name]}; {fix}")
        self.used.add(v.name)
        if not (takes and v.ty.linear):
            return
        if self.loop[v.name] != loop:
            why = f"{v} is consumed inside a loop that does not carry it; add it to what is carried"
            self.fail("V3", path, op, why)
        along = {a.name for a in op.args} if op.name in FLOW else set()  # a tape may move with what it holds
        for tape, params in self.held.items():
            if v.name in params and tape not in self.spent and tape not in along:
                self.fail("V3", path, op, f"{v} is borrowed by the live tape %{tape}; run model.backward on it first")
        self.spent[v.name] = op.name

    def move(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """Values go on under new names, and with a tape its borrow of parameters."""
        names = {a.name: b.name for a, b in zip(old, new, strict=False)}
        for tape in names.keys() & self.held.keys():
            self.held[names[tape]] = frozenset(names.get(p, p) for p in self.held[tape])


def verify(program: Program) -> Program:
    """Return the program if it is legal; raise `Illegal` naming op, value, rule and remedy if it is not."""
    scope, path = _Scope(program), f"@{program.name}"
    for v in program.params:
        scope.define(v, 0, path, None)
    if not program.ops or program.ops[-1].name != "return":
        scope.fail("V13", path, None, "does not end in a return; return one result for each consumed parameter")
    _block(scope, program.ops, path, 0, "")
    params = {v.name for v in program.params}
    for v, at, op in scope.made:
        if v.ty.linear and v.name not in scope.spent and v.name not in params:
            what = "is dropped: it must be consumed exactly once (carry, return or consume it)"
            scope.fail("V3", at, op, f"{v} ({v.ty}) {what}")
        if op and v.ty.kind == "batch" and v.name not in scope.used:
            scope.fail("V3", at, op, f"{v} ({v.ty}) is read and never used; use it or remove what makes it")
    _check_results(scope)
    if program.attrs.get("lazy") == "yes" and program.sealed:
        _check_marks(scope, program.ops, path)
    _check_text(program, parse, path)
    return program


def verify_module(module: Module) -> Module:
    """Verify every program, and that the programs agree on the state that crosses between them."""
    names = [program.name for program in module.programs]
    for name in _PROGRAMS:
        if names.count(name) != 1:
            raise Illegal("V13", f"(@{name})", f"is there {names.count(name)} times; a module has one of each program")
    for program in module.programs:
        verify(program)
    state, saved = [v.ty.plain for v in module.state], [v.ty for v in module.saved]
    for name, verb, values, want in (
        ("train", "returns", [v for v in module["train"].results if v.ty.linear or v.ty.kind == "batch"], state),
        ("init", "returns", module["init"].results, state),
        ("restore", "returns", module["restore"].results, state),
        ("restore", "takes", module["restore"].params, saved),
    ):
        have = [v.ty.plain if verb == "returns" else v.ty for v in values]
        if have != want:
            why = f"{verb} {_types(have)} where the step's state is {_types(want)}; make it exactly that state"
            raise Illegal("V13", f"(@{name})", why)
    _check_text(module, parse_module, f"module @{module.name}")
    return module


def _check_text(thing: Any, read: Callable[[str], Any], path: str) -> None:
    try:
        same, why = read(str(thing)) == thing, "as another one"
    except ParseError as error:
        same, why = False, f"({error})"
    if not same:
        raise Illegal("V14", f"({path})", f"the text does not read back {why}; rename what the text cannot hold")


def _types(types: Sequence[Ty]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


def _block(scope: _Scope, ops: Sequence[Op], path: str, loop: int, region: str) -> None:
    for i, op in enumerate(ops):
        at = f"{path}[{i}]"
        last = i == len(ops) - 1
        if op.name in ("yield", "return") and not last:
            scope.fail("V10", at, op, "is not the last op of its block; move it to the end")
        if (op.body or op.binds) and op.name not in ("repeat", "rt.region"):
            scope.fail("V10", at, op, "has a block; only repeat and rt.region have one, remove it")
        if op.name in FLOW:
            _flow(scope, op, at, loop, region)
        else:
            _plain(scope, op, at, loop, region)
        for v in op.outs:
            scope.define(v, loop, at, op)


def _plain(scope: _Scope, op: Op, at: str, loop: int, region: str) -> None:
    row = OPS.get(op.name)
    if row is None:
        close = nearest(op.name, [*OPS, *FLOW])
        scope.fail("V2", at, op, f"is no op of the table in vitcore/step/ops.py{close}; correct the name")
    for j, a in enumerate(op.args):
        scope.use(a, j in row.takes, loop, at, op)
    _attrs(scope, op, at, (*row.attrs, *LOWERED_ATTRS))
    for name in row.required:
        if name not in op.attrs:
            scope.fail("V2", at, op, f"has no attribute {name!r}; write {{{name}=...}}")
    if region and "host" in row.effects:
        scope.fail("V7", at, op, f"{_names(op)}waits for the host inside region {region!r}; move it between regions")
    if loop and "collective" in row.effects:
        scope.fail("V12", at, op, f"{_names(op)}is reduced inside repeat; reduce once, after the loop")
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
        stream = op.attrs.get("stream", "model")
        if stream in scope.streams:
            why = f"{_names(op)}is split for stream {stream!r} a second time; give it another {{stream=...}}"
            scope.fail("V5", at, op, why)
        scope.streams.add(stream)
    if op.outs and op.outs[-1].ty.kind == "tape":
        scope.held[op.outs[-1].name] = frozenset(a.name for a in op.args if a.ty.kind == "params")


def _attrs(scope: _Scope, op: Op, at: str, known: Sequence[str]) -> None:
    for name in op.attrs:
        if name in STEPWISE:
            scope.fail("V8", at, op, f"attribute {name!r} changes from step to step; pass it in %hyper")
        if name in LOWERED_ATTRS and scope.program.neutral:
            scope.fail("V6", at, op, f"attribute {name!r} belongs to lowering; remove it from the neutral program")
        if name not in known:
            takes = ", ".join(k for k in known if k not in LOWERED_ATTRS) or "none"
            scope.fail("V2", at, op, f"has no attribute {name!r}; it takes {takes}")
    if not re.fullmatch(r"[0-9]+/[0-9]+/[0-9]+", op.attrs.get("flushes", "0/0/0")):
        scope.fail("V2", at, op, f"flushes {op.attrs['flushes']!r}; write {{flushes=before/inside/after}} in numbers")


def _names(op: Op) -> str:
    return " ".join(map(str, op.args)) + " " if op.args else ""


def _flow(scope: _Scope, op: Op, at: str, loop: int, region: str) -> None:
    if op.name.startswith("rt.") and scope.program.neutral:
        scope.fail("V6", at, op, "may be placed by lowering alone; remove it from the neutral program")
    if region and op.name != "yield":
        scope.fail("V11", at, op, f"stands inside region {region!r}, which holds device ops alone; move it out")
    if op.name in ("rt.mark", "rt.region") and (op.args or op.binds):
        scope.fail("V10", at, op, f"{_names(op)}is handed over; ops inside a region use outer values by their name")
    if op.name not in ("repeat", "rt.region") and op.outs:
        scope.fail("V10", at, op, f"gives no results; remove {', '.join(map(str, op.outs))}")
    for a in op.args:
        scope.use(a, True, loop, at, op)
    _attrs(scope, op, at, _FLOW_ATTRS.get(op.name, ()))
    if op.name not in ("repeat", "rt.region"):
        return
    inner, first = loop, len(scope.made)
    if op.name == "repeat":
        if not re.fullmatch(r"[1-9][0-9]*", op.attrs.get("n", "")):
            scope.fail("V10", at, op, "has no count; write {n=...} with a whole number of at least 1")
        scope.loops += 1
        inner = scope.loops
    else:
        region = op.attrs.get("name", "")
        if not region or region in scope.regions:
            scope.fail("V1", at, op, f"has the name {region!r}; write {{name=...}} with a name of its own")
        scope.regions.add(region)
    for v in op.binds:
        scope.define(v, inner, at, op)
    scope.move(op.args, op.binds)
    if not op.body or op.body[-1].name != "yield":
        scope.fail("V10", at, op, "has a block that does not end in a yield; yield what it carries")
    _block(scope, op.body, f"{at} {op.name}", inner, region)
    scope.closed.update({v.name: op.name for v, _, _ in scope.made[first:]})
    yields = op.body[-1].args
    if op.name == "repeat":
        carried, got = [v.ty for v in op.binds], [v.ty for v in yields]
        given = [a.ty.plain for a in op.args]
        if not carried == got == given:
            why = f"takes {_types(given)}, carries {_types(carried)} and yields {_types(got)}; make the three one"
            scope.fail("V10", at, op, why)
    elif len(op.body) == 1:
        scope.fail("V11", at, op, f"{region!r} holds no op; remove it")
    scope.move(yields, op.outs)
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
    """Rule V11: a mark after each region, unless a kernel flushes at its end or first thing after it; kernels that
    flush stand at the edges of regions."""
    for i, op in enumerate(ops):
        at, name = f"{path}[{i}]", op.attrs.get("name", "")
        if op.name == "repeat":
            _check_marks(scope, op.body, f"{at} repeat")
        before = ops[i - 1] if i else op
        if op.name == "rt.mark" and (before.name != "rt.region" or before.attrs["name"] != op.attrs.get("after")):
            scope.fail("V11", at, op, "stands after no region of that name; remove it")
        if op.name != "rt.region":
            continue
        marked = ops[i + 1].name == "rt.mark"
        after = ops[i + 1 + marked]
        flushed = op.body[-2].flushes[2] > 0 or (after.name == "rt.region" and after.body[0].flushes[0] > 0)
        if not (marked or flushed):
            scope.fail("V11", at, op, f"{name!r} is never flushed; put an rt.mark after it")
        if marked and flushed:
            scope.fail("V11", at, op, f"{name!r} is flushed by a kernel and by a mark; remove the rt.mark after it")
        for j, o in enumerate(op.body[:-1]):
            if (j and o.flushes[0]) or (j < len(op.body) - 2 and sum(o.flushes[1:])):
                where = f"{at} rt.region[{j}]"
                scope.fail("V11", where, o, f"flushes in the midst of region {name!r}; cut the region there")
