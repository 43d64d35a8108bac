"""Which dp rank computes each sample of a microbatch: any may, whatever the other modules do."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from disagg_train.planner.sample_costs import Floats, Ints
from disagg_train.planner.seats import grouped

_HALVINGS = 40


@dataclass(frozen=True)
class LaneRoom:
    """Positions of a lane's packed stream.

    Args:
        taken_S: by each sample.
        room: of a lane.
    """

    taken_S: Ints
    room: int


def packed_lanes(
    weights_S: Floats, at_S: Ints, num_microbatches: int, dp: int, limit: LaneRoom | None = None
) -> Ints | None:
    """Return the dp rank of each sample: the heaviest first, each to the lightest lane.

    Args:
        weights_S: seconds of each sample.
        at_S: the microbatch of each sample.
        num_microbatches: of the step.
        dp: lanes of a microbatch.
        limit: of the lanes; a lane without room for a sample is passed over.

    Returns:
        None where a sample finds room in no lane.
    """
    if limit is not None:
        return _lanes_with_room(weights_S, at_S, num_microbatches, dp, limit)
    if dp == 1:
        return np.zeros_like(at_S)
    order = np.lexsort((-weights_S, at_S))
    starts_M = np.searchsorted(at_S[order], np.arange(num_microbatches))
    lane_S = np.empty_like(at_S)
    lane_S[order] = np.arange(len(order)) - starts_M[at_S[order]]
    heaps = _first_loads(weights_S, at_S, lane_S, num_microbatches, dp)
    more = order[lane_S[order] >= dp]
    found = []
    for microbatch, weight in zip(at_S[more].tolist(), weights_S[more].tolist(), strict=True):
        load, lane = heaps[microbatch][0]
        heapreplace(heaps[microbatch], (load + weight, lane))
        found.append(lane)
    lane_S[more] = found
    return lane_S


def _first_loads(
    weights_S: Floats, at_S: Ints, lane_S: Ints, num_microbatches: int, dp: int
) -> list[list[tuple[float, int]]]:
    """Return each microbatch's heap of lanes that have one sample each."""
    first = lane_S < dp
    loads_ML = np.zeros((num_microbatches, dp))
    loads_ML[at_S[first], lane_S[first]] = weights_S[first]
    heaps = [[(load, lane) for lane, load in enumerate(lanes)] for lanes in loads_ML.tolist()]
    for heap in heaps:
        heapify(heap)
    return heaps


def _lanes_with_room(
    weights_S: Floats, at_S: Ints, num_microbatches: int, dp: int, limit: LaneRoom
) -> Ints | None:
    heaps = [[(0.0, lane) for lane in range(dp)] for _ in range(num_microbatches)]
    filled = [[0] * dp for _ in range(num_microbatches)]
    lane_S = np.empty_like(at_S)
    for sample in np.argsort(-weights_S, kind="stable").tolist():
        microbatch, taken = int(at_S[sample]), int(limit.taken_S[sample])
        found = _lane_with_room(heaps[microbatch], filled[microbatch], taken, limit.room)
        if found is None:
            return None
        load, lane = found
        filled[microbatch][lane] += taken
        heappush(heaps[microbatch], (load + float(weights_S[sample]), lane))
        lane_S[sample] = lane
    return lane_S


def _lane_with_room(
    heap: list[tuple[float, int]], filled: list[int], taken: int, room: int
) -> tuple[float, int] | None:
    """Take the lightest lane that has room off the heap."""
    passed_over = []
    found = None
    while heap and found is None:
        candidate = heappop(heap)
        if filled[candidate[1]] + taken <= room:
            found = candidate
        else:
            passed_over.append(candidate)
    for each in passed_over:
        heappush(heap, each)
    return found


def padded_lanes(weights_S: Floats, at_S: Ints, num_microbatches: int, dp: int) -> Ints:
    """Return the dp rank of each sample where a lane's samples all cost what its longest costs.

    Sorted by length, each lane takes a run of samples; the runs whose largest cost is least are
    found by bisection.

    Args:
        weights_S: seconds of each sample, without padding.
        at_S: the microbatch of each sample.
        num_microbatches: of the step.
        dp: lanes of a microbatch.
    """
    lane_S = np.zeros_like(at_S)
    if dp == 1:
        return lane_S
    for held in grouped(at_S, num_microbatches):
        longest_first = sorted(held, key=lambda sample: (-weights_S[sample], sample))
        starts = _best_runs([float(weights_S[sample]) for sample in longest_first], dp)
        runs = zip(starts, [*starts[1:], len(longest_first)], strict=True)
        for lane, (first, last) in enumerate(runs):
            lane_S[longest_first[first:last]] = lane
    return lane_S


def _best_runs(descending: list[float], most: int) -> list[int]:
    """Return where each run begins; a run costs its first weight times its length."""
    if not descending:
        return []
    low, high = descending[0], descending[0] * len(descending)
    starts = _runs(descending, high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = _runs(descending, middle)
        if len(found) <= most:
            starts, high = found, middle
        else:
            low = middle
    return starts


def _runs(descending: list[float], most_s: float) -> list[int]:
    """Return where runs begin that each cost no more than ``most_s``."""
    starts, first = [0], 0
    while True:
        weight = descending[first]
        first += max(1, int(most_s / weight * (1 + 1e-12))) if weight > 0 else len(descending)
        if first >= len(descending):
            return starts
        starts.append(first)
