"""The last stage: a sealed program as the readable Python that runs it.

Each region becomes a function under its own name, each op a call of its kernel on the runtime `rt`, a `repeat` a loop.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.step.ir import Op, Program, Value, values, walk

_SILENT = ("impl", "variant", "flushes")

# What the generated code itself uses; no value and no region may be called so there.
_RESERVED = frozenset({*keyword.kwlist, "rt", "range", "_"})


def call_name(op: Op) -> str:
    """The runtime's name for the op's chosen kernel: `opt_update__reference`."""
    return f"{op.name.replace('.', '_')}__{op.attrs['impl']}"


def source(program: Program) -> str:
    """Readable Python for a sealed program; its text stands above it nowhere, `--print-step=lowered` shows it."""
    if not program.sealed:
        raise VitcoreError(f"@{program.name} is not sealed, so it cannot become Python; lower it first")
    regions: list[str] = []
    py = _python_names(program)
    body = _block(program.ops, 1, regions, py)
    head = f"def {program.name}({_names(program.params, py)}):"
    return "\n".join([*regions, head, f'    """{program.level} @{program.name}"""', *body]) + "\n"


def compile_program(program: Program, rt: Any) -> Callable[..., Any]:
    """Compile the source under the program's name, so that tracebacks and debuggers show it, and bind the runtime."""
    import linecache

    text, filename = source(program), f"<vitcore {program.level} @{program.name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"rt": rt}
    exec(compile(text, filename, "exec"), namespace)
    return namespace[program.name]


def _python_names(program: Program) -> dict[str, str]:
    """What each region and each value is called in Python: as in the text, unless that name is taken there."""
    taken, py = {*_RESERVED, program.name}, dict[str, str]()
    regions = [op.attrs["name"] for op in walk(program.ops) if op.name == "rt.region"]
    for text in (*regions, *map(str, values(program))):
        name = re.sub(r"\W", "_", text.removeprefix("%"))
        name = name if name.isidentifier() else "_" + name
        while name in taken:
            name += "_"
        taken.add(name)
        py[text] = name
    return py


def _names(values: Sequence[Value], py: Mapping[str, str]) -> str:
    return ", ".join(py[str(v)] for v in values)


def _literal(text: str) -> str:
    if re.fullmatch(r"(0|[1-9][0-9]*)(/[1-9][0-9]*)?", text):
        return text.replace("/", " / ")
    try:
        number = float(text)
    except ValueError:
        return repr(text)
    return repr(number) if math.isfinite(number) else repr(text)


def _block(ops: Sequence[Op], depth: int, regions: list[str], py: Mapping[str, str]) -> list[str]:
    pad, out = "    " * depth, []
    for op in ops:
        outs = f"{_names(op.outs, py)} = " if op.outs else ""
        if op.name in ("return", "yield"):
            comma = "," if len(op.args) == 1 and op.name == "return" else ""
            out.append(f"{pad}return {_names(op.args, py)}{comma}")
        elif op.name == "rt.mark":
            out.append(f"{pad}rt.mark()")
        elif op.name == "repeat":
            carried = f"{_names(op.binds, py)} = " if op.binds else ""
            out += [f"{pad}{carried}{_names(op.args, py)}"] if carried else []
            out.append(f"{pad}for _ in range({op.attrs['n']}):")
            out += _block(op.body[:-1], depth + 1, regions, py)
            out.append(f"{pad}    {carried}{_names(op.body[-1].args, py)}" if carried else f"{pad}    pass")
            out += [f"{pad}{outs}{_names(op.binds, py)}"] if outs else []
        elif op.name == "rt.region":
            made = {v.name for o in op.body for v in o.outs}
            free = {a.name: a for o in op.body for a in o.args if a.name not in made}
            name, given = py[op.attrs["name"]], _names([free[n] for n in sorted(free)], py)
            made_by = "@rt.capture" if op.attrs.get("capture") else "@rt.region"
            regions += [made_by, f"def {name}({given}):", *_block(op.body, 1, regions, py), "", ""]
            out.append(f"{pad}{outs}{name}({given})")
        else:
            extra = [f"{k}={_literal(v)}" for k, v in sorted(op.attrs.items()) if k not in _SILENT]
            out.append(f"{pad}{outs}rt.{call_name(op)}({', '.join([*(py[str(a)] for a in op.args), *extra])})")
    return out
