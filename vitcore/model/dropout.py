"""Dropout without generator state: a mask is a pure function of (the sample's key, the site, the element's index).

The same sample gets the same mask on every device, in any batch, at any world size. A backend may claim the
function with a kernel of its own; this one is the reference.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from vitcore.errors import VitcoreError
from vitcore.model.hashing import int32, mix


class _SampleHash(NamedTuple):
    """The two numbers, of shape (B, 1), by which each sample turns an element's hash into its own; and the numbers of
    elements, 0, 1, 2 ..., by how many there are."""

    factor_B1: Tensor
    offset_B1: Tensor
    indices: dict[int, Tensor]


_current: ContextVar[_SampleHash | None] = ContextVar("vitcore_dropout_keys", default=None)


@contextmanager
def dropout_keys(keys_B: Tensor) -> Iterator[None]:
    """Give dropout its randomness: `keys_B`, int32 of shape (B,), one key a sample, on the device of the images.

    Contexts nest; the innermost counts. Raises VitcoreError when `keys_B` has another dtype or shape.
    """
    if keys_B.dtype != torch.int32 or keys_B.ndim != 1:
        raise VitcoreError(
            f"dropout_keys: got {keys_B.dtype} of shape {tuple(keys_B.shape)}; give int32 of shape (batch,), "
            "as vitcore.data.order.sample_keys makes them"
        )
    keys_B1 = keys_B[:, None]
    # Once a forward, not once a site: these are many small operations. Odd factors lose no bit of what they multiply.
    factor_B1 = mix(keys_B1 + int32(0x9E3779B9)) * 2 + 1
    token = _current.set(_SampleHash(factor_B1, mix(keys_B1), {}))
    try:
        yield
    finally:
        _current.reset(token)


def dropout(x: Tensor, p: float, site: int) -> Tensor:
    """Zero each element of `x` with probability `p` and multiply the rest by 1 / (1 - p).

    `x` has shape (B, ...). `site` is a small integer, another for each place that calls. p == 0 returns `x` itself.
    Raises VitcoreError outside `dropout_keys`, for a batch of another size than its keys, and for p outside [0, 1).
    """
    if p == 0.0:
        return x
    drop = drop_mask(x, p, site)
    # A boolean mask is all that the backward keeps: one byte an element.
    return (x * (1.0 / (1.0 - p))).masked_fill(drop, 0.0)


def drop_mask(x: Tensor, p: float, site: int) -> Tensor:
    """The elements of `x` that `dropout(x, p, site)` zeroes, as a boolean tensor of its shape."""
    if not 0.0 < p < 1.0:
        raise VitcoreError(f"dropout: p={p} is not a rate; give a number of at least 0 and under 1")
    samples = _current.get()
    if samples is None:
        raise VitcoreError(
            "dropout: no keys for the samples, so no mask can be drawn; run the forward inside "
            "`with dropout_keys(keys):`, or set the model to eval()"
        )
    batch = x.shape[0]
    if samples.offset_B1.shape[0] != batch:
        raise VitcoreError(
            f"dropout: {samples.offset_B1.shape[0]} keys for a batch of {batch} samples; "
            "give dropout_keys one key for each row"
        )
    element_E = mix(_index(samples, math.prod(x.shape[1:]), x) + _first_element(site))
    # A random linear function, one a sample, of a well mixed number, one an element: any two elements are independent,
    # for three operations on the whole batch where hashing each element of each sample would take twenty.
    hash_BE = element_E * samples.factor_B1 + samples.offset_B1
    return (hash_BE < min(round(p * 2**32), 2**32 - 1) - 2**31).view(x.shape)


def _index(samples: _SampleHash, count: int, like: Tensor) -> Tensor:
    """0 ... count - 1 on the device, once a forward. A running sum, as torch's lazy device loses 160 kB of memory for ever
    each time that it runs `arange`."""
    if count not in samples.indices:
        ones_E = torch.ones(count, dtype=torch.int32, device=like.device)
        samples.indices[count] = ones_E.cumsum(0, dtype=torch.int32) - 1
    return samples.indices[count]


def _first_element(site: int) -> int:
    """Where the numbers of `site`'s elements begin: steps of the golden ratio keep sites far from each other."""
    return int32((site + 1) * 0x9E3779B9)
