"""The text of programs: printer and parser. `parse(print(p)) == p` (rule V14), so tests are written in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping

from vitcore.errors import VitcoreError
from vitcore.step.ir import Group, Module, Op, Program, Ty, Value


class ParseError(VitcoreError):
    """The text of a program is malformed; the message names the line and what was expected there."""


# ---- printing ----

_WORD = r"[\w.+*/|^$-]+(?::[\w.-]+)*"
_BARE = re.compile(rf"(?!//){_WORD}", re.A)


def _attrs(attrs: Mapping[str, str]) -> str:
    if not attrs:
        return ""
    shown = (f"{k}={v if _BARE.fullmatch(v) else json.dumps(v)}" for k, v in sorted(attrs.items()))
    return " {" + ", ".join(shown) + "}"


def _number(x: float) -> str:
    short = f"{x:g}"
    return short if float(short) == x else repr(x)


def _declare(values: Iterable[Value]) -> str:
    return "(" + ", ".join(f"{v}: {v.ty}" for v in values) + ")"


def print_op(op: Op, depth: int = 0) -> str:
    """The op and its block, indented by `depth` levels of two spaces."""
    pad = "  " * depth
    head = pad + (", ".join(map(str, op.outs)) + " = " if op.outs else "") + op.name
    head += " " + ", ".join(map(str, op.args)) if op.args else ""
    head += _attrs(op.attrs)
    if op.body:
        binds = " " + _declare(op.binds) if op.binds else ""
        return "\n".join([head + binds + " [", *(print_op(o, depth + 1) for o in op.body), pad + "]"])
    return head + (" : " + ", ".join(str(v.ty) for v in op.outs) if op.outs else "")


def print_program(program: Program) -> str:
    """The program's text, ending in a newline."""
    head = f"{program.level} @{program.name}{_declare(program.params)}{_attrs(program.attrs)} ["
    return "\n".join([head, *(print_op(op, 1) for op in program.ops), "]"]) + "\n"


def print_module(module: Module) -> str:
    """The module's header, its parameter groups and its programs."""
    lines = [f"module @{module.name}{_attrs(module.attrs)}"]
    for g in module.groups:
        multiples = {"lr": _number(g.lr), "weight_decay": _number(g.weight_decay)}
        more = {"kind": g.kind} if g.kind else {}
        more |= {"frozen": "yes"} if g.frozen else {}
        lines.append(f"group @{g.name}" + _attrs({"pattern": g.pattern, **multiples, **more}))
    return "\n".join(lines) + "\n\n" + "\n".join(print_program(p) for p in module.programs)


# ---- parsing ----

_TOKEN = re.compile(
    rf"""(?P<space>[ \t\r]+|//[^\n]*)|(?P<newline>\n)|(?P<value>%[A-Za-z_]\w*)|(?P<symbol>@[\w.-]+)
    |(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<word>{_WORD})|(?P<mark>[\[\](){{}}<>,=:])""",
    re.X | re.A,
)
_DEEPEST = 32  # blocks inside blocks; a program has two


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str, int]] = []
        line, at = 1, 0
        while at < len(text):
            m = _TOKEN.match(text, at)
            if m is None:
                raise ParseError(f"program text, line {line}: cannot read {text[at : at + 12]!r}")
            kind = m.lastgroup or ""
            if kind == "newline":
                line += 1
            elif kind != "space":
                self.tokens.append((kind, m.group(), line))
            at = m.end()
        self.at, self.end_line, self.depth = 0, line, 0
        self.env: dict[str, Value] = {}

    def peek(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else "end"

    def line(self) -> int:
        return self.tokens[self.at][2] if self.at < len(self.tokens) else self.end_line

    def fail(self, wanted: str) -> ParseError:
        found = self.peek() or "the end"
        return ParseError(f"program text, line {self.line()}: expected {wanted}, found {found!r}")

    def take(self, wanted: str) -> str:
        """Consume one token: a literal such as "[" or a kind such as "<word>"."""
        if self.kind() != wanted[1:-1] if len(wanted) > 2 and wanted[0] == "<" else self.peek() != wanted:
            raise self.fail(wanted)
        self.at += 1
        return self.tokens[self.at - 1][1]

    def accept(self, literal: str) -> bool:
        if self.peek() == literal:
            self.at += 1
            return True
        return False

    def type(self) -> Ty:
        kind = self.take("<word>")
        if derived := kind == "derived":
            self.take("<")
            kind = self.take("<word>")
        args = []
        if self.accept("<"):
            while not self.accept(">"):
                args.append(self.take("<word>"))
        if derived:
            self.take(">")
        return Ty(kind, tuple(args), derived)

    def declared(self) -> tuple[Value, ...]:
        self.take("(")
        out: list[Value] = []
        while not self.accept(")"):
            if out:
                self.take(",")
            name = self.take("<value>")[1:]
            self.take(":")
            out.append(Value(name, self.type()))
        self.env.update({v.name: v for v in out})
        return tuple(out)

    def attrs(self) -> dict[str, str]:
        out: dict[str, str] = {}
        if self.accept("{"):
            while not self.accept("}"):
                if out:
                    self.take(",")
                if self.peek() in out:
                    raise self.fail("each attribute once")
                key = self.take("<word>")
                self.take("=")
                out[key] = self.string() if self.kind() == "string" else self.take("<word>")
        return out

    def string(self) -> str:
        try:
            text = json.loads(self.peek(), strict=False)
        except ValueError:
            raise self.fail("a string with the escapes of JSON") from None
        self.take("<string>")
        return text

    def names(self) -> list[str]:
        out: list[str] = []
        while self.kind() == "value":
            out.append(self.take("<value>")[1:])
            if not self.accept(","):
                break
        return out

    def op(self) -> Op:
        outs = self.names()
        if outs:
            self.take("=")
        line, name = self.line(), self.take("<word>")
        operands = self.names() if self.line() == line else []  # the next line's results are no operands
        args = tuple(self.env.get(n) or Value(n, Ty("undefined")) for n in operands)
        attrs = self.attrs()
        binds: tuple[Value, ...] = ()
        body: tuple[Op, ...] = ()
        types: list[Ty] = []
        if self.peek() in ("(", "["):
            binds = self.declared() if self.peek() == "(" else ()
            body = self.block()
            if not body:
                raise ParseError(f"program text, line {line}: expected an op in the block of {name}, found none")
            types = [a.ty.plain for a in body[-1].args]
        elif self.accept(":"):
            types = [self.type()]
            while self.accept(","):
                types.append(self.type())
        if len(outs) != len(types):
            wanted = f"{len(outs)} result types for {name}"
            raise ParseError(f"program text, line {line}: expected {wanted}, found {len(types)}")
        made = tuple(Value(n, t) for n, t in zip(outs, types, strict=True))
        self.env.update({v.name: v for v in made})
        return Op(name, args, made, attrs, binds, body)

    def block(self) -> tuple[Op, ...]:
        if self.depth == _DEEPEST:
            raise self.fail(f"at most {_DEEPEST} blocks inside each other")
        self.take("[")
        self.depth += 1
        ops = []
        while not self.accept("]"):
            ops.append(self.op())
        self.depth -= 1
        return tuple(ops)

    def program(self) -> Program:
        self.env = {}
        level, name = self.take("<word>"), self.take("<symbol>")[1:]
        params, attrs = self.declared(), self.attrs()
        return Program(name, level, params, self.block(), attrs)

    def group(self) -> Group:
        line, name, a = self.line(), self.take("<symbol>")[1:], self.attrs()
        try:
            if a.keys() <= {"pattern", "lr", "weight_decay", "kind", "frozen"} and a.get("frozen", "yes") == "yes":
                multiples = float(a["lr"]), float(a["weight_decay"])
                return Group(name, a["pattern"], *multiples, a.get("kind", ""), "frozen" in a)
        except (KeyError, ValueError):
            pass
        wanted, found = f"{{lr=number, pattern=text, weight_decay=number}} for group @{name}", _attrs(a) or " nothing"
        raise ParseError(f"program text, line {line}: expected {wanted}, found{found}")

    def module(self) -> Module:
        self.take("module")
        name, attrs = self.take("<symbol>")[1:], self.attrs()
        groups = []
        while self.accept("group"):
            groups.append(self.group())
        programs = []
        while self.kind() != "end":
            programs.append(self.program())
        return Module(name, attrs, tuple(groups), tuple(programs))


def parse(text: str) -> Program:
    """Read one program; raises `ParseError` naming the line."""
    parser = _Parser(text)
    program = parser.program()
    if parser.kind() != "end":
        raise parser.fail("the end of the program")
    return program


def parse_module(text: str) -> Module:
    """Read a module: header, groups, programs; raises `ParseError` naming the line."""
    return _Parser(text).module()
