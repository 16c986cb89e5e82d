"""Reading the pickles of CIFAR's Python archives, and nothing else that a pickle can say.

A pickle is a program. This one may build numbers, byte strings, lists and dicts, and arrays of bytes by the four names that
NumPy's own pickles use, for which stand-ins are called and never NumPy. Every other name is refused before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt


class Refused(Exception):
    """What a pickle asked for and may not have; its text is the reason."""


class PickledArray:
    """An array of bytes, as NumPy's pickles build one: made empty, then given its state."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("the state of an array is not one of NumPy's")
        _, shape, dtype, fortran, data = state
        sizes = shape if isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape) else (-1,)
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes) or len(data) != math.prod(sizes):
            raise Refused(f"an array of shape {shape} is not as long as its bytes")
        self.values = np.frombuffer(data, np.uint8).reshape(sizes, order="F" if fortran else "C")


class _Dtype:
    """The dtype of bytes."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, of which bytes have none."""


class _Name:
    """A name that a pickle may call, as the stand-in for it; it has nothing that a pickle could change."""

    __slots__ = ("_call",)
    _call: Any

    def __init__(self, call: Any) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"it would change what {name!r} is")

    def __setstate__(self, state: Any) -> None:
        raise Refused("it would change a function")


def _reconstruct(*args: Any) -> PickledArray:
    return PickledArray()


def _never(*args: Any) -> Any:
    raise Refused("numpy.ndarray is called")


def _dtype(*args: Any) -> _Dtype:
    if not args or args[0] not in ("u1", b"u1"):
        raise Refused(f"an array of {args[0] if args else 'nothing'!r}, where CIFAR's hold bytes")
    return _Dtype()


def _encode(*args: Any) -> bytes:
    if len(args) != 2 or not isinstance(args[0], str) or args[1] not in ("latin1", "latin-1", b"latin1"):
        raise Refused("_codecs.encode with another encoding than latin1")
    return args[0].encode("latin1")


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _never,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
}


# All of a pickle's instructions that build plain data; GLOBAL, REDUCE and BUILD are for arrays.
_ALLOWED = """MARK STOP POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT STRING
    BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST
    APPEND APPENDS EMPTY_DICT DICT SETITEM SETITEMS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE PROTO FRAME GLOBAL STACK_GLOBAL REDUCE BUILD""".split()


def _refusing(name: str) -> Any:
    def refuse(reader: pickle._Unpickler) -> None:
        raise Refused(f"it uses the instruction {name}")

    return refuse


# The unpickler in Python and not the one in C, which for a place far out in its memo takes memory for all before it.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[Any] = {
        opcode.code.encode("latin1")[0]: pickle._Unpickler.dispatch[opcode.code.encode("latin1")[0]]
        if opcode.name in _ALLOWED
        else _refusing(opcode.name)
        for opcode in pickletools.opcodes
    }

    def find_class(self, module: str, name: str) -> Any:
        call = _NAMES.get((str(module), str(name)))
        if call is None:
            raise Refused(f"it asks for {module}.{name}")
        return _Name(call)


def read_pickle(data: bytes) -> dict[bytes, Any]:
    """The dict in a pickle, text as bytes, arrays as `PickledArray`; Refused for anything else, with nothing of it called."""
    try:
        held = _Reader(io.BytesIO(data), encoding="bytes").load()
    except Refused:
        raise
    # In a damaged pickle, whatever the reader stumbles over.
    except Exception as error:
        raise Refused(f"it is no whole pickle ({type(error).__name__}: {str(error)[:100]})") from error
    if not isinstance(held, dict):
        raise Refused(f"it holds a {type(held).__name__} and no dict")
    # Python 3 writes text where Python 2, which wrote the published files, wrote bytes.
    return {key.encode() if isinstance(key, str) else key: value for key, value in held.items()}
