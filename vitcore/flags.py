"""Command-line flags: those that a plugin brings, as data, and the reading of an argument list into a dataclass."""

from __future__ import annotations

import ast
import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from vitcore.errors import VitcoreError, nearest

# What a flag does: (value, fields that were set by hand) -> (fields to change, one line to say).
Effect = Callable[[Any, dict[str, Any]], tuple[dict[str, Any], str]]


@dataclass(frozen=True)
class Flag:
    """One flag. `kind` is `switch` (present or not), `int`, `float`, `str` or `bool` (true|false after the flag)."""

    name: str
    kind: str
    help: str
    effect: Effect | str
    """The function, or "module:function"."""


def read_flags(argv: Sequence[str], settings: type, prog: str) -> dict[str, Any]:
    """The value of each flag that is given, by field of the dataclass `settings`; the last of repeated flags wins.

    `-` and `_` in names are alike; a switch also has its `--no-` form. VitcoreError for what is no flag, for a missing
    value, and for one that is not of the field's type.
    """
    hints = get_type_hints(settings)
    given: dict[str, Any] = {}
    rest = list(argv)
    while rest:
        token = rest.pop(0)
        flag, equals, attached = token.partition("=")
        name = flag[2:].replace("-", "_")
        if not token.startswith("--"):
            raise VitcoreError(f"{token!r} belongs to no flag; see {prog} --help")
        off = name.removeprefix("no_") if hints.get(name.removeprefix("no_")) is bool else name
        if hints.get(off) is bool:
            if equals:
                raise VitcoreError(f"{flag} is a switch, so {attached!r} is not for it; write {flag} alone")
            given[off] = off == name
        elif name in hints:
            texts, count = [attached] if equals else [], _count(hints[name])
            while rest and len(texts) != count and not rest[0].startswith("--"):
                texts.append(rest.pop(0))
            given[name] = _value(flag, hints[name], texts, count, prog)
        else:
            raise VitcoreError(f"{flag} is no flag of {prog}{_nearest(name, hints)}; see {prog} --help")
    return given


def _nearest(name: str, hints: Mapping[str, Any]) -> str:
    return nearest(f"--{name}", [f"--{known}" for known in hints])


def _kind(hint: Any) -> Any:
    """The type without None."""
    kinds = [k for k in get_args(hint) if k is not NoneType]
    return kinds[0] if NoneType in get_args(hint) else hint


def _count(hint: Any) -> int:
    """How many texts follow the flag; -1 is any number."""
    kinds = get_args(_kind(hint)) if get_origin(_kind(hint)) is tuple else (str,)
    return -1 if Ellipsis in kinds else len(kinds)


def _value(flag: str, hint: Any, texts: list[str], count: int, prog: str) -> Any:
    kind = _kind(hint)
    if texts == ["None"] and kind is not hint:
        return None
    if count > len(texts):
        raise VitcoreError(f"{flag} needs {'a value' if count == 1 else f'{count} values'} after it; see {prog} --help")
    if get_origin(kind) is tuple:
        return tuple(_convert(flag, get_args(kind)[0], text) for text in texts)
    return _convert(flag, kind, texts[0])


def _convert(flag: str, kind: Any, text: str) -> Any:
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if choices and text not in choices:
        raise VitcoreError(f"{flag} {text!r} is none of {', '.join(choices)}{nearest(text, choices)}; choose one")
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise VitcoreError(f"{flag} {text!r} is neither true nor false; write {flag} true or {flag} false")
        return text.lower() in ("true", "1")
    try:
        return text if choices else kind(text)
    except ValueError as e:
        what = "whole number" if kind is int else "number"
        raise VitcoreError(f"{flag} {text!r} is no {what}; give a {what} after {flag}") from e


def help_text(settings: Any, prog: str, about: str, plugin_flags: Sequence[Flag] = ()) -> str:
    """Every flag with its text and its value in `settings`: an instance, or the class where some have no value yet.

    A field's text is the string below it in the source, its heading the comment above it.
    """
    cls = settings if isinstance(settings, type) else type(settings)
    hints, width = get_type_hints(cls), min(shutil.get_terminal_size().columns, 120)
    lines = [f"usage: {prog} [flags]", "", *textwrap.wrap(about.strip(), width), ""]
    lines += textwrap.wrap(
        "- and _ in names are alike, the last of repeated flags wins, and --no_NAME turns a switch off.", width
    )
    about_each = {f.name: ("" if i else "Flags of plugins", f.help) for i, f in enumerate(plugin_flags)}
    for base in reversed(cls.__mro__[:-1]):
        about_each.update(_from_source(base))
    for name, hint in hints.items():
        heading, text = about_each[name]
        lines += ["", f"{heading}:"] if heading else []
        default = getattr(settings, name, None)
        unset = default in (None, ()) or (default is False)
        lines.append(f"  --{name} {_metavar(hint)}".rstrip())
        body = text if unset else f"{text} (default: {_shown(default)})"
        lines += textwrap.wrap(body, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def _metavar(hint: Any) -> str:
    kind = _kind(hint)
    if get_origin(kind) is tuple:
        return f"{_metavar(get_args(kind)[0])} ..." if _count(hint) < 0 else " ".join(map(_metavar, get_args(kind)))
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return {int: "INT", float: "FLOAT", bool: "" if kind is hint else "{true,false}"}.get(kind, "TEXT")


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _from_source(cls: type) -> dict[str, tuple[str, str]]:
    """(heading, text) of each field of a dataclass that is written out in a module."""
    module = sys.modules[cls.__module__]
    if not getattr(module, "__file__", None):
        return {}
    source = inspect.getsource(module)
    lines = source.splitlines()
    body = next((n.body for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__), [])
    found = {}
    for field, below in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            above = lines[field.lineno - 2].strip()
            heading = above.removeprefix("# ") if above.startswith("# ") else ""
            found[ast.unparse(field.target)] = (heading, str(below.value.value))
    return found
