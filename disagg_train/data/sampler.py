"""The order of samples: a hash of (seed, epoch, key), so taking one away moves no other."""

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disagg_train.data.sizes import SizeTable
from disagg_train.errors import CheckpointError, DataError
from disagg_train.planner.step_plan import SampleSize

_FRACTION = 0x5851F42D4C957F2D
"""Tells the hash that chooses from the hash that orders."""


def epoch_order(
    keys: NDArray[np.uint64] | Sequence[int],
    seed: int,
    epoch: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.int64]:
    """Return positions in ``keys`` in the order in which an epoch visits them.

    Args:
        keys: of the samples.
        seed: of the order.
        epoch: number of the epoch.
        weights: visits of each per epoch, once where not given. Of a fraction of a visit, such
            a part of the samples gets one, each epoch another.
    """
    start = mix(mix(np.uint64(seed)) ^ np.uint64(epoch))
    hashes = mix(np.asarray(keys, dtype=np.uint64) ^ start)
    if weights is None:
        return np.argsort(hashes, kind="stable")
    chance = mix(hashes ^ np.uint64(_FRACTION)) / 2.0**64
    whole = np.floor(weights)
    visits = whole.astype(np.int64) + (chance < weights - whole)
    positions = np.repeat(np.arange(len(hashes)), visits)
    visit = np.arange(len(positions)) - np.repeat(np.cumsum(visits) - visits, visits)
    again = mix(hashes[positions] ^ mix(visit.astype(np.uint64)))
    in_turn = np.argsort(np.where(visit == 0, hashes[positions], again), kind="stable")
    return positions[in_turn]


class Batches(Iterator[tuple[SampleSize, ...]]):
    """Global batches for ever; a batch may run from one epoch into the next.

    Args:
        sizes: of all samples.
        seed: of the order.
        batch_size: most samples of a batch.
        num_fitting: how many of some samples, from the first on, a step has room for; all where
            not given. What has no room begins the next batch.
    """

    def __init__(
        self,
        sizes: Sequence[SampleSize],
        seed: int,
        batch_size: int,
        num_fitting: Callable[[Sequence[SampleSize]], int] = len,
    ) -> None:
        self._sizes, self._seed, self._batch_size = sizes, seed, batch_size
        self._num_fitting = num_fitting
        self._keys, self._weights = _keys_and_weights(sizes)
        self._leave(np.arange(len(sizes)))
        self._pending = np.zeros(0, np.int64)
        self._newest = np.zeros(0, np.int64)
        self._epoch = 0

    def __next__(self) -> tuple[SampleSize, ...]:
        """Return the next batch.

        Raises:
            DataError: no sample is left, or none has room.
        """
        while len(self._pending) < self._batch_size:
            self._pending = np.concatenate([self._pending, self._next_epoch()])
        candidates = [self._sizes[int(i)] for i in self._pending[: self._batch_size]]
        count = self._num_fitting(candidates)
        if not count:
            raise DataError(f"sample {candidates[0].key} alone does not fit into a step")
        self._newest, self._pending = np.split(self._pending, [count])
        return tuple(candidates[:count])

    def take_out(self, keys: Collection[int]) -> None:
        """Go on as if some samples had never been there, from the newest batch on.

        That batch is given back; the next one takes its place.
        """
        out = np.isin(self._keys, np.array(sorted(keys), np.uint64))
        pending = np.concatenate([self._newest, self._pending])
        self._pending = pending[~out[pending]]
        self._leave(self._left[~out[self._left]])
        self._newest = self._newest[:0]

    def _leave(self, positions: NDArray[np.int64]) -> None:
        self._left = positions
        self._taken_out: list[int] = np.delete(self._keys, positions).tolist()

    def state(self) -> dict[str, Any]:
        """Return where the order stands, as plain data; the newest batch counts as gone.

        Epochs are orders by hash, so those drawn so far need not be kept: how many of their
        last samples are still to come says it all.
        """
        return {
            "epoch": self._epoch,
            "remaining": len(self._pending),
            "taken_out": self._taken_out,
            "data_set": self._identity,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state`` was taken, to the sample.

        Args:
            state: of batches of the same data set and seed; how many samples a batch has may
                have changed.

        Raises:
            CheckpointError: it is of another data set or seed.
        """
        if (before := state["data_set"]) != self._identity:
            raise CheckpointError(
                f"the data set is not the one of the checkpoint, which has {_words(before)}; now "
                f"it has {_words(self._identity)}. Go on with the same samples, weights and seed, "
                f"or name the earlier run in `start_from` to train its weights on another data set"
            )
        taken_out = np.isin(self._keys, np.array(state["taken_out"], np.uint64))
        self._leave(np.flatnonzero(~taken_out))
        self._newest = self._newest[:0]
        self._epoch = epoch = state["epoch"]
        orders: list[NDArray[np.int64]] = []
        while (missing := state["remaining"] - sum(map(len, orders))) > 0:
            epoch -= 1
            orders.insert(0, self._order(epoch)[-missing:])
        self._pending = np.concatenate([np.zeros(0, np.int64), *orders])

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """What all samples and their order follow from."""
        digest = hashlib.sha256(self._keys.astype("<u8").tobytes())
        if self._weights is not None:
            digest.update(self._weights.astype("<f8").tobytes())
        return {"samples": len(self._keys), "digest": digest.hexdigest(), "seed": self._seed}

    def _next_epoch(self) -> NDArray[np.int64]:
        if not len(self._left):
            raise DataError("no sample is left to train on; all were taken out as bad")
        self._epoch += 1
        return self._order(self._epoch - 1)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """Return the rows of what is left, in the order in which an epoch visits them."""
        weights = None if self._weights is None else self._weights[self._left]
        return self._left[epoch_order(self._keys[self._left], self._seed, epoch, weights)]


batches = Batches
"""Global batches of all samples, ``batch_size`` each."""


def _words(data_set: Mapping[str, Any]) -> str:
    return f"{data_set['samples']} samples ({data_set['digest'][:12]}, seed {data_set['seed']})"


def _keys_and_weights(
    sizes: Sequence[SampleSize],
) -> tuple[NDArray[np.uint64], NDArray[np.float64] | None]:
    if isinstance(sizes, SizeTable):
        return sizes.keys_N, None if (sizes.weights_N == 1).all() else sizes.weights_N
    return np.array([size.key for size in sizes], np.uint64), None


def mix(values: NDArray[np.uint64] | np.uint64) -> NDArray[np.uint64]:
    """Finalise splitmix64 (Steele et al., 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        z = np.asarray(values, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))
