"""Improve an assignment to microbatches by moving or swapping single samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.planner.sample_costs import Floats, Ints

_MOST_PAIRS = 4_000
"""Swaps that a look at a microbatch takes in; steps of many more samples come out even without."""

_LEAST_GAIN = 1e-2
"""Of a microbatch's height: an eighth of it in seconds."""

_TRIED = 3
"""Heaviest microbatches that a round looks for an improvement of."""


@dataclass(frozen=True)
class Bounds:
    """The first and the last microbatch that each sample may be in."""

    first_S: Ints
    last_S: Ints

    def allow(self, samples: Ints, microbatches: Ints) -> NDArray[np.bool_]:
        """Return whether samples may be in microbatches; the arguments are broadcast."""
        begun: NDArray[np.bool_] = self.first_S[samples] <= microbatches
        ended: NDArray[np.bool_] = microbatches <= self.last_S[samples]
        return begun & ended


def improved(
    weights_SR: Floats, at_S: Ints, bounds: Bounds, num_microbatches: int, rounds: int = 64
) -> Ints:
    """Return an assignment whose heaviest microbatches are lighter, if one is found.

    Args:
        weights_SR: seconds of each sample for each of R resources.
        at_S: the microbatch of each sample.
        bounds: where samples may be.
        num_microbatches: of the step.
        rounds: most changes.
    """
    at_S = at_S.copy()
    scale = weights_SR.sum() / num_microbatches or 1.0
    search = _Search(weights_SR / scale, bounds, num_microbatches)
    for _ in range(rounds):
        if not search.improve(at_S):
            break
    return at_S


class _Search:
    def __init__(self, weights_SR: Floats, bounds: Bounds, num_microbatches: int) -> None:
        self._weights_SR, self._bounds = weights_SR, bounds
        self._microbatches = np.arange(num_microbatches)
        self._samples = np.arange(len(weights_SR))

    def improve(self, at_S: Ints) -> bool:
        """Make the best change of a heavy microbatch; False where none helps."""
        loads_MR = loads(self._weights_SR, at_S, len(self._microbatches))
        height_M = _height(loads_MR)
        for heavy in np.argsort(-height_M, kind="stable")[:_TRIED].tolist():
            held = np.flatnonzero(at_S == heavy)
            if not len(held):
                continue
            gain, sample, other, to = self._best_move(held, heavy, loads_MR, height_M)
            others = self._samples
            if len(held) * len(others) > _MOST_PAIRS:
                others = np.flatnonzero(at_S == height_M.argmin())
            if 0 < len(held) * len(others) <= _MOST_PAIRS:
                swap = self._best_swap(held, heavy, others, at_S, loads_MR, height_M)
                gain, sample, other, to = max((gain, sample, other, to), swap, key=lambda c: c[0])
            if gain > _LEAST_GAIN * height_M[heavy]:
                at_S[sample] = to
                if other >= 0:
                    at_S[other] = heavy
                return True
        return False

    def _best_move(
        self, held: Ints, heavy: int, loads_MR: Floats, height_M: Floats
    ) -> tuple[float, int, int, int]:
        """Return (gain, sample, -1, microbatch) of the best move of one sample."""
        moved_HR = self._weights_SR[held]
        left_H = _height(loads_MR[heavy] - moved_HR)
        there_HM = _height(loads_MR[None] + moved_HR[:, None])
        gain_HM = height_M[heavy] + height_M - left_H[:, None] - there_HM
        allowed = self._bounds.allow(held[:, None], self._microbatches)
        gain_HM = np.where(allowed & (self._microbatches != heavy), gain_HM, -np.inf)
        best, to = np.unravel_index(np.argmax(gain_HM), gain_HM.shape)
        return float(gain_HM[best, to]), int(held[best]), -1, int(to)

    def _best_swap(
        self,
        held: Ints,
        heavy: int,
        others: Ints,
        at_S: Ints,
        loads_MR: Floats,
        height_M: Floats,
    ) -> tuple[float, int, int, int]:
        """Return (gain, sample, the other one, its microbatch) of the best swap."""
        moved_HOR = self._weights_SR[held][:, None] - self._weights_SR[others][None]
        at_O = at_S[others]
        here_HO = _height(loads_MR[heavy] - moved_HOR)
        there_HO = _height(loads_MR[at_O][None] + moved_HOR)
        gain_HO = height_M[heavy] + height_M[at_O] - here_HO - there_HO
        allowed = self._bounds.allow(held[:, None], at_O)
        allowed &= self._bounds.allow(others, np.array(heavy))
        gain_HO = np.where(allowed & (at_O != heavy), gain_HO, -np.inf)
        best, other = np.unravel_index(np.argmax(gain_HO), gain_HO.shape)
        return float(gain_HO[best, other]), int(held[best]), int(others[other]), int(at_O[other])


def loads(weights_SR: Floats, at_S: Ints, num_microbatches: int) -> Floats:
    """Return the seconds of each microbatch for each resource."""
    columns = [np.bincount(at_S, column, num_microbatches) for column in weights_SR.T]
    return np.stack(columns, axis=-1)


def _height(loads_XR: Floats) -> Floats:
    """Return the sum of eighth powers: high enough that the largest loads decide."""
    squares_XR = loads_XR * loads_XR
    fourths_XR = squares_XR * squares_XR
    heights: Floats = (fourths_XR * fourths_XR).sum(axis=-1)
    return heights
