"""The vendor's published interface as data (gaudi_api.json, and an addendum of environment and metrics), and what a piece of code
uses of it.

`uses(path)` finds every import, attribute, call and "module:function" string of `habana_frameworks`, every name of an
environment variable, every metric; `complaints(path)` says what of that is not published.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = "habana_frameworks"
ENVIRONMENT = re.compile(r"\b((?:PT_|HABANA|HLS_|TORCH_DEVICE|HCL|SYN)[A-Z0-9_]+)\b")
# Strings are looked at too; these words of messages and comments are no variables.
NO_VARIABLE = re.compile(r"^HABANA_?$")


@cache
def published() -> dict[str, dict[str, Any]]:
    """Every symbol by its full name, and every module that holds one."""
    rows = json.loads((HERE / "gaudi_api.json").read_text(encoding="utf-8"))
    named = {f"{r['module']}.{r['symbol']}": r for r in rows if r["symbol"] != "(import)"}
    for row in rows:
        parts = row["module"].split(".")
        for i in range(1, len(parts) + 1):
            named.setdefault(".".join(parts[:i]), {"kind": "module", "signature": ""})
    return named


@cache
def addendum() -> dict[str, Any]:
    """What the list of symbols does not hold: variables, metrics with their keys, methods, each with its source."""
    held: dict[str, Any] = json.loads((HERE / "addendum.json").read_text(encoding="utf-8"))
    return held


def signature(text: str) -> inspect.Signature:
    """A published signature as Python's own; annotations and defaults that are names of the library's count as given."""
    head, _, rest = text.partition("(")
    tree = ast.parse(f"def f({rest[: _closing(rest)]}): pass")
    arguments = tree.body[0].args  # type: ignore[attr-defined]
    kind = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    first = len(plain) - len(arguments.defaults)
    made = [
        kind(a.arg, kind.POSITIONAL_OR_KEYWORD, default=None if i >= first else kind.empty) for i, a in enumerate(plain)
    ]
    made += [kind(arguments.vararg.arg, kind.VAR_POSITIONAL)] if arguments.vararg else []
    made += [
        kind(a.arg, kind.KEYWORD_ONLY, default=None if d is not None else kind.empty)
        for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults)
    ]
    made += [kind(arguments.kwarg.arg, kind.VAR_KEYWORD)] if arguments.kwarg else []
    assert head
    return inspect.Signature(made)


def _closing(text: str) -> int:
    depth = 1
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if depth == 0:
            return i
    raise ValueError(text)


@dataclass
class Uses:
    """What a file uses: symbols, calls of them with the number of positions and the keywords, variables, metrics."""

    symbols: dict[str, int] = field(default_factory=dict)
    calls: list[tuple[str, int, tuple[str, ...], int]] = field(default_factory=list)
    variables: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, int] = field(default_factory=dict)
    keys: list[tuple[str, int]] = field(default_factory=list)


def uses(path: Path) -> Uses:
    """Read a file."""
    text = path.read_text(encoding="utf-8")
    found, names = Uses(), dict[str, str]()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                if a.name.split(".")[0] == ROOT:
                    found.symbols.setdefault(a.name, node.lineno)
                    names[a.asname or ROOT] = a.name if a.asname else ROOT
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == ROOT:
            for a in node.names:
                full = f"{node.module}.{a.name}"
                found.symbols.setdefault(full, node.lineno)
                names[a.asname or a.name] = full
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.fullmatch(rf"{ROOT}[\w.]*:[\w.]+", node.value):
                found.symbols.setdefault(node.value.replace(":", "."), node.lineno)
            elif re.fullmatch(rf"{ROOT}[\w.]*", node.value):
                found.symbols.setdefault(node.value, node.lineno)
    names |= {"torch": "torch"}
    for node in ast.walk(tree):
        full = _full(node, names)
        if full:
            found.symbols.setdefault(full, node.lineno)  # type: ignore[attr-defined]
        if isinstance(node, ast.Call):
            _call(node, names, found)
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.slice, ast.Constant)
            and re.match("Total|Recipe|Avg", str(node.slice.value))
        ):
            found.keys.append((str(node.slice.value), node.lineno))
    for number, line in enumerate(text.splitlines(), 1):
        for match in ENVIRONMENT.finditer(line):
            if not NO_VARIABLE.match(match[1]):
                found.variables.setdefault(match[1], number)
    return found


def _call(node: ast.Call, names: dict[str, str], found: Uses) -> None:
    full = _full(node.func, names)
    if full is None:
        return
    keywords = tuple(k.arg or "**" for k in node.keywords)
    found.calls.append((full, len(node.args), keywords, node.lineno))
    if full.endswith(".metric_global") and node.args and isinstance(node.args[0], ast.Constant):
        found.metrics.setdefault(str(node.args[0].value), node.lineno)


def _full(node: ast.AST, names: dict[str, str]) -> str | None:
    """The library's name for an expression; `torch.hpu` is its module."""
    full = _dotted(node, names) or ""
    full = f"{ROOT}.{full}" if full.startswith("torch.hpu.") else full
    return full if full.startswith(f"{ROOT}.") else None


def _dotted(node: ast.AST, names: dict[str, str]) -> str | None:
    if isinstance(node, ast.Attribute):
        left = _dotted(node.value, names)
        return left and f"{left}.{node.attr}"
    return names.get(node.id) if isinstance(node, ast.Name) else None


def complaints(path: Path) -> Iterator[str]:
    """What a file uses that is not published, or not so."""
    used, known = uses(path), published()
    for name, line in used.symbols.items():
        if name not in known and f"{name.rpartition('.')[0]}" not in _classes():
            yield f"{path.name}:{line}: {name} is not published"
        elif known.get(name, {}).get("mode") == "removed":
            yield f"{path.name}:{line}: {name} was removed"
    for name, positions, keywords, line in used.calls:
        said = _signature_of(name)
        if said is None:
            yield f"{path.name}:{line}: {name} is called, and no signature of it is published"
            continue
        try:
            signature(said).bind(*[0] * positions, **dict.fromkeys(keywords, 0))
        except TypeError as e:
            yield f"{path.name}:{line}: {name} called against {said}: {e}"
        if ".apply(" in said and keywords:
            yield f"{path.name}:{line}: {name} takes no keywords"
    for name, line in used.variables.items():
        if name not in addendum()["environment"]:
            yield f"{path.name}:{line}: the variable {name} has no source"
    metrics = addendum()["metrics"]
    for name, line in used.metrics.items():
        if name not in metrics:
            yield f"{path.name}:{line}: there is no metric {name}"
    keys = {k for name in used.metrics for k in metrics.get(name, {"keys": []})["keys"]}
    for key, line in used.keys:
        if key not in keys:
            yield f"{path.name}:{line}: none of the metrics used holds {key}"


@cache
def _classes() -> frozenset[str]:
    return frozenset(name for name, row in published().items() if row["kind"] == "class")


def _signature_of(name: str) -> str | None:
    row = published().get(name)
    if row and "(" in row["signature"]:
        return str(row["signature"])
    owner, _, method = name.rpartition(".")
    if owner in _classes():
        said = str(published()[owner]["signature"])
        if method == "apply" and ".apply(" in said:
            return said
        return next((m for m in addendum()["methods"].get(owner, ()) if m.startswith(f"{method}(")), None)
    return None
