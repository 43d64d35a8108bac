"""Who computes which sample, as columns: the form in which assignments are worked out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from disagg_train.planner.sample_costs import Floats, Ints
from disagg_train.planner.step_plan import Assignment


@dataclass(frozen=True)
class Seats:
    """A module's assignment of S samples.

    Args:
        microbatch_S: of each sample.
        lane_S: its dp rank there.
        num_microbatches: of the step.
        dp: lanes of a microbatch.
    """

    microbatch_S: Ints
    lane_S: Ints
    num_microbatches: int
    dp: int

    @classmethod
    def of(cls, assignment: Assignment) -> "Seats":
        """Return an assignment's columns; it holds each of its samples once."""
        dp = len(assignment[0])
        lanes = [lane for microbatch in assignment for lane in microbatch]
        counts = np.fromiter(map(len, lanes), np.int64, len(lanes))
        held = np.fromiter((i for lane in lanes for i in lane), np.int64, int(counts.sum()))
        seat_S = np.empty(len(held), np.int64)
        seat_S[held] = np.repeat(np.arange(len(lanes)), counts)
        return cls(seat_S // dp, seat_S % dp, len(assignment), dp)

    @property
    def seat_of_sample(self) -> Ints:
        """The samples' lanes, numbered through all microbatches."""
        return self.microbatch_S * self.dp + self.lane_S

    def assignment(self) -> Assignment:
        """Return ``[microbatch][dp rank]`` -> sample indices, ascending."""
        seat_S = self.seat_of_sample
        order = np.argsort(seat_S, kind="stable")
        bounds = np.searchsorted(seat_S[order], np.arange(self.num_microbatches * self.dp + 1))
        held, ends = order.tolist(), bounds.tolist()
        lanes = [tuple(held[a:b]) for a, b in zip(ends, ends[1:], strict=False)]
        return tuple(
            tuple(lanes[first : first + self.dp]) for first in range(0, len(lanes), self.dp)
        )

    def sums(self, weights_S: Floats) -> Floats:
        """Return the sum of each lane's weights, ``[microbatch, lane]``."""
        sums = np.bincount(self.seat_of_sample, weights_S, self.num_microbatches * self.dp)
        return sums.reshape(self.num_microbatches, self.dp)

    def padded_sums(self, lengths_S: Floats, power: int = 1) -> Floats:
        """Return the same of powers of lengths, all padded to the longest of their lane."""
        longest = np.zeros(self.num_microbatches * self.dp)
        np.maximum.at(longest, self.seat_of_sample, lengths_S)
        return self.sums(longest[self.seat_of_sample] ** power)


def grouped(seats: Sequence[int] | NDArray[np.int64], count: int) -> list[list[int]]:
    """Return the samples of each of ``count`` seats, ascending."""
    held: list[list[int]] = [[] for _ in range(count)]
    for sample, seat in enumerate(np.asarray(seats).tolist()):
        held[seat].append(sample)
    return held
