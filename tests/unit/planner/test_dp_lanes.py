"""Dp ranks of a microbatch: even work, within their room; and the columns behind them."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.dp_lanes import LaneRoom, packed_lanes, padded_lanes
from disagg_train.planner.in_order import in_order
from disagg_train.planner.seats import Seats

weights = st.lists(st.floats(0.0, 100.0), min_size=1, max_size=20)
degrees = st.integers(1, 5)


@given(st.integers(1, 30), degrees, degrees)
def test_columns_and_assignments_say_the_same(count: int, microbatches: int, dp: int) -> None:
    assignment = in_order(count, microbatches, dp)
    assert Seats.of(assignment).assignment() == assignment


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_two_lanes_of_few_samples_are_near_the_best(drawn: list[int]) -> None:
    weights_S = np.array(drawn, float)
    lane_S = packed_lanes(weights_S, np.zeros(len(drawn), np.int64), 1, 2)
    assert lane_S is not None
    best = min(
        max(sum(chosen), sum(drawn) - sum(chosen))
        for count in range(len(drawn) + 1)
        for chosen in combinations(drawn, count)
    )
    assert np.bincount(lane_S, weights_S, 2).max() <= 7 / 6 * best + 1e-9


@given(st.lists(st.integers(1, 40), min_size=1, max_size=20), degrees, st.integers(40, 120))
def test_no_lane_goes_beyond_its_room(drawn: list[int], dp: int, room: int) -> None:
    taken_S, one = np.array(drawn), np.zeros(len(drawn), np.int64)
    lane_S = packed_lanes(taken_S.astype(float), one, 1, dp, LaneRoom(taken_S, room))
    if lane_S is None:
        assert taken_S.sum() > room * dp - max(drawn) * dp
    else:
        assert np.bincount(lane_S, taken_S, dp).max() <= room


@given(weights, degrees)
def test_padded_lanes_are_runs_of_like_lengths_and_no_cut_is_better(
    drawn: list[float], dp: int
) -> None:
    weights_S = np.array(drawn) + 1.0
    lane_S = padded_lanes(weights_S, np.zeros(len(drawn), np.int64), 1, dp)
    held = [weights_S[lane_S == lane] for lane in range(dp)]
    slowest = max(each.max(initial=0.0) * len(each) for each in held)
    ordered = np.sort(weights_S)[::-1]
    cuts = combinations(range(1, len(drawn)), min(dp, len(drawn)) - 1)
    best = min(
        max(ordered[a] * (b - a) for a, b in zip((0, *cut), (*cut, len(drawn)), strict=True))
        for cut in list(cuts)[:5000]
    )
    assert slowest <= best * (1 + 1e-6)
