"""Routes carry every needed token once, nothing else, and share the work evenly."""

from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.boundary.routes import Interval, Route, cut, intersect, rows_of
from disagg_train.errors import PlanError
from disagg_train.topology.layout import Holding, Layout, Span
from tests.unit.boundary.strategies import BoundaryCase, boundary_cases


def sent_by(routes: Iterable[Route], place: int) -> int:
    return sum(len(route) for route in routes if route.source == place)


def received_by(routes: Iterable[Route], place: int) -> int:
    return sum(len(route) for route in routes if route.destination == place)


def differ_by_at_most_one(loads: list[int]) -> bool:
    return max(loads) - min(loads) <= 1


@given(boundary_cases())
def test_every_token_a_group_needs_arrives_there_exactly_once_and_nothing_else(
    case: BoundaryCase,
) -> None:
    for group in case.receivers:
        leading_here = [route for route in case.routes if route.destination in group]
        arrived = Counter(token for route in leading_here for token in route.tokens)
        assert arrived == Counter(dict.fromkeys(case.needed_by(group[0]), 1))


@given(boundary_cases())
def test_every_route_leads_from_a_holder_to_a_rank_that_needs_it(case: BoundaryCase) -> None:
    for route in case.routes:
        assert len(route) > 0
        assert set(route.tokens) <= case.held_by(route.source)
        assert set(route.tokens) <= case.needed_by(route.destination)


@given(boundary_cases())
def test_routes_are_ordered_by_source_destination_and_start(case: BoundaryCase) -> None:
    keys = [(route.source, route.destination, route.start) for route in case.routes]
    assert keys == sorted(keys)


@given(boundary_cases())
def test_the_reverse_of_a_route_is_its_transpose(case: BoundaryCase) -> None:
    for route in case.routes:
        back = route.reversed()
        assert (back.source, back.destination) == (route.destination, route.source)
        assert back.tokens == route.tokens
        assert back.reversed() == route


@given(boundary_cases(shared="none"))
def test_disjoint_sides_carry_exactly_the_payload(case: BoundaryCase) -> None:
    assert not any(route.is_local for route in case.routes)
    assert sum(len(route) for route in case.routes) == len(case.payload)


@given(boundary_cases(shared="none"))
def test_replicas_of_disjoint_senders_share_what_they_send_within_one_token(
    case: BoundaryCase,
) -> None:
    for group in case.senders:
        loads = [sent_by(case.routes, place) for place in group]
        assert differ_by_at_most_one(loads)
        assert sum(loads) == len(case.payload & case.held_by(group[0]))


@given(boundary_cases(shared="none"))
def test_replicas_of_disjoint_receivers_share_what_they_receive_within_one_token(
    case: BoundaryCase,
) -> None:
    for group in case.receivers:
        loads = [received_by(case.routes, place) for place in group]
        assert differ_by_at_most_one(loads)
        assert sum(loads) == len(case.needed_by(group[0]))


@given(boundary_cases())
def test_where_sides_overlap_the_wire_still_loads_replicas_equally(case: BoundaryCase) -> None:
    crossing = [route for route in case.routes if not route.is_local]
    for group in case.senders:
        assert differ_by_at_most_one([sent_by(crossing, place) for place in group])
    for group in case.receivers:
        assert differ_by_at_most_one([received_by(crossing, place) for place in group])


@given(boundary_cases())
def test_a_token_that_can_stay_in_a_process_does(case: BoundaryCase) -> None:
    for route in case.routes:
        sender = next(group for group in case.senders if route.source in group)
        receiver = next(group for group in case.receivers if route.destination in group)
        assert route.is_local == bool(set(sender) & set(receiver))


@given(boundary_cases())
def test_equal_layouts_on_the_same_ranks_send_nothing(case: BoundaryCase) -> None:
    source = case.layouts.source
    assert all(route.is_local for route in intersect(source, source))


def single(place: int, *spans: Span) -> Layout:
    return Layout((place,), (Holding.of(spans),), ((0,),))


def test_a_token_that_nobody_holds_is_refused_with_its_number_and_rank() -> None:
    source = single(0, Span(0, 3, 0), Span(4, 9, 3))
    with pytest.raises(PlanError, match="rank 7 needs token 3, which no source rank holds"):
        intersect(source, single(7, Span(1, 6, 0)))


@pytest.mark.parametrize("span", [Span(0, 2, 0), Span(8, 10, 0), Span(20, 21, 0)])
def test_a_token_outside_every_interval_is_refused(span: Span) -> None:
    with pytest.raises(PlanError, match="which no source rank holds"):
        intersect(single(0, Span(1, 9, 0)), single(1, span))


def test_a_sample_nobody_needs_is_not_sent() -> None:
    routes = intersect(single(0, Span(0, 9, 0)), single(1, Span(2, 4, 0)))
    assert routes == (Route(0, 1, 2, 4),)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), max_size=8), st.integers(1, 6))
def test_cut_keeps_every_token_in_order_in_parts_that_differ_by_at_most_one(
    gaps_and_counts: list[tuple[int, int]], parts: int
) -> None:
    intervals: list[Interval] = []
    stop = 0
    for gap, count in gaps_and_counts:
        intervals.append((stop + gap, stop + gap + count))
        stop += gap + count
    runs = cut(intervals, parts)
    assert tokens(i for run in runs for i in run) == tokens(intervals)
    sizes = [len(tokens(run)) for run in runs]
    assert len(sizes) == parts and max(sizes) - min(sizes) <= 1


def tokens(intervals: Iterable[Interval]) -> list[int]:
    return [token for start, stop in intervals for token in range(start, stop)]


def test_rows_of_follow_the_intervals_across_spans() -> None:
    holding = Holding.of([Span(0, 3, 10), Span(3, 5, 0)])
    assert rows_of(holding, [(4, 5), (1, 4)]) == [1, 11, 12, 0]


@pytest.mark.parametrize("interval", [(0, 1), (3, 6), (5, 6), (8, 9), (7, 9)])
def test_rows_of_refuses_a_token_that_is_not_held(interval: Interval) -> None:
    holding = Holding.of([Span(1, 4, 0), Span(6, 8, 3)])
    with pytest.raises(PlanError, match=r"token \d is not held here: \[1, 4\), \[6, 8\)"):
        rows_of(holding, [interval])
