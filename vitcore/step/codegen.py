"""The last stage: a sealed program as the readable Python that runs it.

Each region becomes a function under its own name, each op a call of its kernel on the runtime `rt`, a `repeat` a loop.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any

from vitcore.errors import VitcoreError
from vitcore.step.ir import Op, Program, Value

_SILENT = ("impl", "flushes")


def call_name(op: Op) -> str:
    """The runtime's name for the op's chosen kernel: `opt_update__reference`."""
    return f"{op.name.replace('.', '_')}__{op.attrs['impl']}"


def source(program: Program) -> str:
    """Readable Python for a sealed program; its text stands above it nowhere, `--print-step=lowered` shows it."""
    if not program.sealed:
        raise VitcoreError(f"@{program.name} is not sealed, so it cannot become Python; lower it first")
    regions: list[str] = []
    body = _block(program.ops, 1, regions)
    head = f"def {program.name}({_names(program.params)}):"
    return "\n".join([*regions, head, f'    """{program.level} @{program.name}"""', *body]) + "\n"


def compile_program(program: Program, rt: Any) -> Callable[..., Any]:
    """Compile the source under the program's name, so that tracebacks and debuggers show it, and bind the runtime."""
    import linecache

    text, filename = source(program), f"<vitcore {program.level} @{program.name}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    namespace: dict[str, Any] = {"rt": rt}
    exec(compile(text, filename, "exec"), namespace)
    return namespace[program.name]


def _py(name: str) -> str:
    return name + "_" if keyword.iskeyword(name) or name == "rt" else name


def _names(values: Sequence[Value]) -> str:
    return ", ".join(_py(v.name) for v in values)


def _literal(text: str) -> str:
    numerator, slash, denominator = text.partition("/")
    if numerator.isdigit() and (not slash or denominator.isdigit()):
        return f"{numerator} / {denominator}" if slash else text
    try:
        return repr(float(text))
    except ValueError:
        return repr(text)


def _block(ops: Sequence[Op], depth: int, regions: list[str]) -> list[str]:
    pad, out = "    " * depth, []
    for op in ops:
        outs = f"{_names(op.outs)} = " if op.outs else ""
        if op.name in ("return", "yield"):
            out.append(f"{pad}return {_names(op.args)}" + ("," if len(op.args) == 1 and op.name == "return" else ""))
        elif op.name == "rt.mark":
            out.append(f"{pad}rt.mark()")
        elif op.name == "repeat":
            out.append(f"{pad}{_names(op.binds)} = {_names(op.args)}")
            out.append(f"{pad}for _ in range({op.attrs['n']}):")
            out += _block(op.body[:-1], depth + 1, regions)
            out.append(f"{pad}    {_names(op.binds)} = {_names(op.body[-1].args)}")
            out.append(f"{pad}{_names(op.outs)} = {_names(op.binds)}")
        elif op.name == "rt.region":
            made = {v.name for o in op.body for v in o.outs}
            free = {a.name: a for o in op.body for a in o.args if a.name not in made}
            name = _py(op.attrs["name"])
            lines = _block(op.body, 1, regions)
            regions += ["@rt.region", f"def {name}({_names([free[n] for n in sorted(free)])}):", *lines, "", ""]
            out.append(f"{pad}{outs}{name}({_names([free[n] for n in sorted(free)])})")
        else:
            extra = [f"{k}={_literal(v)}" for k, v in sorted(op.attrs.items()) if k not in _SILENT]
            args = ", ".join([*(_py(a.name) for a in op.args), *extra])
            out.append(f"{pad}{outs}rt.{call_name(op)}({args})")
    return out
