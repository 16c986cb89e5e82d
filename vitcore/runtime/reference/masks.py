"""What a refused step leaves alone, exactly: in place by mul_ and add_, as copy_ and where fall back on some recording devices.

A refused update multiplies by 1 and adds 0; what it would have added is masked and not multiplied, as it may not be finite.
"""

from __future__ import annotations

from torch import Tensor


def keep_if(ok: Tensor, factor: Tensor) -> Tensor:
    """The factor, or 1 where `ok` is 0."""
    return factor * ok + (1 - ok)


def masked(term: Tensor, ok: Tensor) -> Tensor:
    """The term, or 0 where `ok` is 0."""
    return term.masked_fill(ok <= 0, 0.0)
