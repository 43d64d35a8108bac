"""Routes carry every needed token once, nothing else, and share the work evenly."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.boundary.layouts import Side, destination_layout, source_layout
from disagg_train.boundary.routes import Interval, Route, cut, intersect, rows_of
from disagg_train.errors import PlanError
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Holding, Layout, Span
from tests.unit.boundary.oracle import groups, tokens_in
from tests.unit.boundary.strategies import BoundaryCase, boundary_cases


def source_groups(case: BoundaryCase) -> list[tuple[int, ...]]:
    return groups(case.source, case.source.grid.pp - 1)


def destination_groups(case: BoundaryCase) -> list[tuple[int, ...]]:
    return groups(case.destination, 0)


def needed_tokens(case: BoundaryCase) -> set[int]:
    return set().union(*(tokens_in(stream) for stream in case.needed.values()))


def sent_by(routes: Iterable[Route], place: int) -> int:
    return sum(len(route) for route in routes if route.source == place)


def received_by(routes: Iterable[Route], place: int) -> int:
    return sum(len(route) for route in routes if route.destination == place)


@given(boundary_cases())
def test_every_token_a_group_needs_arrives_there_exactly_once_and_nothing_else(
    case: BoundaryCase,
) -> None:
    routes = case.layouts.routes()
    for group in destination_groups(case):
        arrived = Counter(t for route in routes if route.destination in group for t in route.tokens)
        assert arrived == Counter(dict.fromkeys(tokens_in(case.needed[group[0]]), 1))


@given(boundary_cases())
def test_every_route_leads_from_a_holder_to_a_rank_that_needs_it(case: BoundaryCase) -> None:
    for route in case.layouts.routes():
        assert len(route) > 0
        assert set(route.tokens) <= tokens_in(case.held[route.source])
        assert set(route.tokens) <= tokens_in(case.needed[route.destination])


@given(boundary_cases())
def test_routes_are_ordered_by_source_destination_and_start(case: BoundaryCase) -> None:
    routes = case.layouts.routes()
    keys = [(route.source, route.destination, route.start) for route in routes]
    assert keys == sorted(keys)


@given(boundary_cases())
def test_the_reverse_of_a_route_is_its_transpose(case: BoundaryCase) -> None:
    for route in case.layouts.routes():
        back = route.reversed()
        assert (back.source, back.destination) == (route.destination, route.source)
        assert back.tokens == route.tokens
        assert back.reversed() == route


@given(boundary_cases(disjoint=True))
def test_disjoint_sides_carry_exactly_the_payload(case: BoundaryCase) -> None:
    routes = case.layouts.routes()
    assert not any(route.is_local for route in routes)
    assert sum(len(route) for route in routes) == len(needed_tokens(case))


@given(boundary_cases(disjoint=True))
def test_replicas_of_disjoint_senders_send_equally_much(case: BoundaryCase) -> None:
    routes = case.layouts.routes()
    needed = needed_tokens(case)
    for group in source_groups(case):
        loads = [sent_by(routes, place) for place in group]
        assert max(loads) - min(loads) <= 1
        group_tokens = len(needed & tokens_in(case.held[group[0]]))
        assert max(loads) == -(-group_tokens // len(group))


@given(boundary_cases(disjoint=True))
def test_replicas_of_disjoint_receivers_receive_equally_much(case: BoundaryCase) -> None:
    routes = case.layouts.routes()
    for group in destination_groups(case):
        loads = [received_by(routes, place) for place in group]
        assert max(loads) - min(loads) <= 1
        group_tokens = len(tokens_in(case.needed[group[0]]))
        assert max(loads) == -(-group_tokens // len(group))


@given(boundary_cases())
def test_where_sides_overlap_the_wire_still_loads_replicas_equally(case: BoundaryCase) -> None:
    crossing = [route for route in case.layouts.routes() if not route.is_local]
    for group in source_groups(case):
        loads = [sent_by(crossing, place) for place in group]
        assert max(loads) - min(loads) <= 1
    for group in destination_groups(case):
        loads = [received_by(crossing, place) for place in group]
        assert max(loads) - min(loads) <= 1


@given(boundary_cases())
def test_a_token_that_can_stay_in_a_process_does(case: BoundaryCase) -> None:
    for route in case.layouts.routes():
        sender = next(g for g in source_groups(case) if route.source in g)
        receiver = next(g for g in destination_groups(case) if route.destination in g)
        assert route.is_local == bool(set(sender) & set(receiver))


@given(boundary_cases(disjoint=False))
def test_equal_layouts_on_the_same_ranks_send_nothing(case: BoundaryCase) -> None:
    source = case.layouts.source
    assert all(route.is_local for route in intersect(source, source))


def in_equal_runs(num_samples: int, dp: int) -> tuple[tuple[int, ...], ...]:
    bounds = [num_samples * i // dp for i in range(dp + 1)]
    return tuple(tuple(range(a, b)) for a, b in pairwise(bounds))


@pytest.mark.parametrize(("source_dp", "destination_dp"), [(4, 1), (1, 4), (3, 2), (2, 3)])
def test_577_rows_per_sample_travel_once_between_any_two_degrees(
    source_dp: int, destination_dp: int
) -> None:
    samples = tuple(SampleSize(i, 600, 1, {"vision": (Slot(10, 577),)}) for i in range(4))
    lanes = {"vision": source_dp, "language": destination_dp}
    assignment = {m: (in_equal_runs(4, dp),) for m, dp in lanes.items()}
    plan = StepPlan(0, samples, assignment)
    source = Side("vision", Grid(dp=source_dp), tuple(range(source_dp)))
    places = tuple(range(source_dp, source_dp + destination_dp))
    destination = Side("language", Grid(dp=destination_dp), places)
    routes = intersect(
        source_layout(plan, source, 0), destination_layout(plan, "vision", destination, 0)
    )
    assert sum(len(route) for route in routes) == 2308


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
