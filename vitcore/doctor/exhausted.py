"""A device without memory left, said in one sentence: which op of the program asked, for how much, and what helps."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from vitcore.doctor.memory import Memory
from vitcore.doctor.quantities import size
from vitcore.errors import VitcoreError
from vitcore.profiling.names import said

_SHOWN = 4
# What libraries say, of a device or of the host, where they have no type of error for it.
_WORDS = re.compile(r"can't allocate memory|not enough memory|out of memory|failed to allocate", re.I)
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGT]?i?B)", re.I)
_PROGRAM = re.compile(r"<vitcore \S+ @(\w+)>")
_CALL = re.compile(r"\brt\.(\w+?__\w+)\(")


def is_exhausted(error: BaseException) -> bool:
    """Whether this says that there is no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and bool(_WORDS.search(str(error)))


def running(error: BaseException) -> tuple[str, str]:
    """The program that ran and its op with what carries it out, by the error's traceback, whose innermost frame of generated
    code called the kernel; empty where none ran."""
    found, tb = ("", ""), error.__traceback__
    while isinstance(tb, TracebackType):
        filename = tb.tb_frame.f_code.co_filename
        program = _PROGRAM.fullmatch(filename)
        call = _CALL.search(linecache.getline(filename, tb.tb_lineno)) if program else None
        if program and call:
            found = program[1], said(call[1])
        tb = tb.tb_next
    return found


def asked_for(error: BaseException) -> str:
    """How much, as the library says it; empty where it does not."""
    found = _ASKED.search(str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    return size(int(number)) if unit.lower() == "bytes" else f"{number} {unit}"


@contextmanager
def memory_explained(plan: Callable[[], Memory | None], helps: Callable[[str], str]) -> Iterator[None]:
    """Turn an error for lack of memory inside into a VitcoreError. `plan` gives what was planned, where that is known; `helps`
    the flags for the program in which it happened, "" for none."""
    try:
        yield
    except VitcoreError:
        raise
    except (RuntimeError, MemoryError) as e:
        if not is_exhausted(e):
            raise
        program, op = running(e)
        where = f"at {op} in @{program}" if op else "before the first program ran"
        asked = asked_for(e)
        memory = plan()
        parts = [f"out of memory {where}" + (f", which asked for {asked}" if asked else "")]
        if memory is not None:
            parts += [memory.line(), f"the largest tensors: {'; '.join(memory.largest[:_SHOWN])}"]
        raise VitcoreError(f"{'. '.join(parts)}. What helps: {helps(program)}") from e
