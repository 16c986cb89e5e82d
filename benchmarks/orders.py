"""In which order loops take their turns, so that no loop's place is better than another's.

What runs before leaves caches, clock and allocator as it likes them. In a Williams design (Williams 1949) each loop stands in
every place equally often, and each follows each other equally often; a rotation alone has the first, but everyone always follows
the same one.
"""

from __future__ import annotations


def balanced(count: int) -> list[list[int]]:
    """Orders of 0 .. count - 1 that are balanced together: as many as there are loops, or twice as many where that is odd."""
    zigzag, low, high = list[int](), 0, count - 1
    while low <= high:
        zigzag.append(low)
        if low < high:
            zigzag.append(high)
        low, high = low + 1, high - 1
    rows = [[(place + shift) % count for place in zigzag] for shift in range(count)]
    return rows if count % 2 == 0 else rows + [row[::-1] for row in rows]
