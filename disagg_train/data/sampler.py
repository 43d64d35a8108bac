"""The order of samples: a hash of (seed, epoch, key), so taking one away moves no other."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from disagg_train.planner.step_plan import SampleSize


def epoch_order(keys: Sequence[int], seed: int, epoch: int) -> NDArray[np.int64]:
    """Return positions in ``keys`` in the order in which an epoch visits them."""
    start = _mix(_mix(np.uint64(seed)) ^ np.uint64(epoch))
    hashes = _mix(np.asarray(keys, dtype=np.uint64) ^ start)
    return np.argsort(hashes, kind="stable")


def batches(
    sizes: Sequence[SampleSize], seed: int, batch_size: int
) -> Iterator[tuple[SampleSize, ...]]:
    """Yield global batches for ever; a batch may run from one epoch into the next."""
    keys = [size.key for size in sizes]
    pending: list[SampleSize] = []
    epoch = 0
    while True:
        while len(pending) < batch_size:
            pending += [sizes[i] for i in epoch_order(keys, seed, epoch)]
            epoch += 1
        yield tuple(pending[:batch_size])
        del pending[:batch_size]


def _mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Finalise splitmix64 (Steele et al., 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        z = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
