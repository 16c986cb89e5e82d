"""Integer hashing on int32 tensors that gives the same bits on every device.

int32 addition and multiplication wrap around everywhere. Exclusive or and right shift are written with other
operations, because some recording devices have neither and would leave the recorded graph for each of them.
"""

from torch import Tensor, div


def int32(value: int) -> int:
    """The signed 32-bit integer with the low 32 bits of `value`."""
    return (value + 0x80000000) % 0x100000000 - 0x80000000


def exclusive_or(x: Tensor, y: Tensor) -> Tensor:
    """x ^ y of int32 tensors: their sum without the carries."""
    return (x + y).sub(x & y, alpha=2)


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of an int32 tensor by 15 to 31 `bits` (int32's own would repeat the sign).

    A division of what a mask has left: at most 17 significant bits, so that the quotient is exact even where a device
    divides integers in float32.
    """
    step = 1 << bits
    return div(x & -step, step, rounding_mode="floor") & ((1 << (32 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """Hash an int32 tensor element by element: C. Wellons' lowbias32 (github.com/skeeto/hash-prospector)."""
    x = exclusive_or(x, shift_right(x, 16)) * int32(0x7FEB352D)
    x = exclusive_or(x, shift_right(x, 15)) * int32(0x846CA68B)
    return exclusive_or(x, shift_right(x, 16))
