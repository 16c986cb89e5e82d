"""The sample order and every per-sample draw, as pure functions of (seed, global position). NumPy only.

A *position* counts the samples that training has consumed since it began, over all ranks: 0, 1, 2, ... Position p is in
epoch p // usable. Nothing here knows a rank, a world size or a batch, so the joined sequence of all ranks is the same
for every world size, and a run resumes at a position exactly.
"""

import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from vitcore.errors import VitcoreError

Int64s = npt.NDArray[np.int64]

# Streams keep independent the draws that share a seed and a position. Streams of draw_uniform are apart from those of
# sample_keys by construction.
KEY_STREAM_DROPOUT = 0
# Streams of draw_uniform; never renumber one, or the same seed gives other pictures.
FLIP_STREAM, AFFINE_STREAM, CROP_STREAM, GAIN_STREAM = 1, 2, 3, 4
MIX_STREAM, ERASE_STREAM, KEEP_STREAM, POLICY_STREAM, JITTER_STREAM, REPLACE_STREAM = 5, 6, 7, 8, 9, 10

# Weyl step and finaliser of splitmix64 (S. Vigna, public domain).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1
_one_at_a_time = threading.Lock()


def usable_length(n: int, global_batch: int) -> int:
    """The samples of an epoch of `n` that fill whole global batches; the ragged end is dropped.

    The samples that are dropped change from epoch to epoch, since it is the end of the shuffled order that goes.
    Raises VitcoreError when `n` does not fill one global batch.
    """
    if global_batch < 1:
        raise VitcoreError(f"global batch {global_batch} must be at least 1; give a positive batch size")
    if n < global_batch:
        raise VitcoreError(
            f"{n} training pictures do not fill one global batch of {global_batch}; "
            "use a smaller batch or more pictures"
        )
    return n - n % global_batch


def epoch_permutation(seed: int, epoch: int, n: int) -> Int64s:
    """The order of the indices 0 .. n-1 in one epoch; read-only, since the last two are kept.

    For 10 million samples it takes 1.7 seconds and 200 MB, of which 80 MB stay. Threads that ask for the same one wait for
    the first of them.
    """
    with _one_at_a_time:
        return _epoch_permutation(seed, epoch, n)


@lru_cache(maxsize=2)
def _epoch_permutation(seed: int, epoch: int, n: int) -> Int64s:
    """It sorts the raw output of Philox and does not call NumPy's `permutation`: raw bits are promised to stay the same
    across NumPy's versions, the methods on top of them are not, and a run must resume under a later version.
    """
    bits = np.random.Philox(key=np.array([seed & _MASK, epoch & _MASK], dtype=np.uint64)).random_raw(n)
    order = np.argsort(np.asarray(bits), kind="stable").astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def sample_indices(seed: int, positions: Int64s, n: int, usable: int) -> Int64s:
    """The data set's index at each position, where each epoch takes `usable` of `n` samples.

    Positions may span several epochs. Raises VitcoreError for a negative position.
    """
    positions = np.asarray(positions, dtype=np.int64)
    if positions.size and positions.min() < 0:
        raise VitcoreError(f"position {positions.min()} is negative; positions count samples from 0")
    epochs, offsets = np.divmod(positions, usable)
    indices = np.empty_like(positions)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        indices[here] = epoch_permutation(seed, int(epoch), n)[offsets[here]]
    return indices


def sample_keys(seed: int, positions: Int64s, stream: int = KEY_STREAM_DROPOUT) -> npt.NDArray[np.int32]:
    """One int32 key for each position: a hash of (seed, stream, position)."""
    high: npt.NDArray[np.uint64] = _hash(seed, stream, positions) >> np.uint64(32)
    return high.astype(np.uint32).view(np.int32)


def draw_uniform(seed: int, positions: Int64s, stream: int, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [0, 1) a position, of shape (len(positions), count): hashes of (seed, stream, position)."""
    base = _hash(seed, stream, positions)[:, None]
    bits: npt.NDArray[np.uint64] = _finalise(base + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN) >> np.uint64(11)
    uniform: npt.NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return uniform


def _hash(seed: int, stream: int, positions: Int64s) -> npt.NDArray[np.uint64]:
    # An array of one and not a scalar: NumPy wraps arrays silently and warns about scalars.
    state = _finalise(np.array([seed & _MASK], dtype=np.uint64) + _GOLDEN)
    state = _finalise((state ^ np.array([stream & _MASK], dtype=np.uint64)) + _GOLDEN)
    return _finalise(state + np.asarray(positions, dtype=np.int64).astype(np.uint64) * _GOLDEN)


def _finalise(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _FACTOR_1
    x = (x ^ (x >> np.uint64(27))) * _FACTOR_2
    x = x ^ (x >> np.uint64(31))
    return x
