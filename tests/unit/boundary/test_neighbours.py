"""A rank that looks at its neighbours alone finds the same part as one that looks at everybody."""

from dataclasses import replace

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from disagg_train.boundary.layouts import holding_of
from disagg_train.boundary.step_exchanges import Boundary, RankExchanges
from disagg_train.errors import PlanError
from disagg_train.schedule.graph import Reach
from disagg_train.topology.grid import Grid
from tests.unit.boundary.strategies import BoundaryCase, boundary_cases, case_in_order
from tests.unit.boundary.views import layouts_for


@given(boundary_cases())
def test_a_rank_needs_to_look_at_its_neighbours_alone(case: BoundaryCase) -> None:
    boundary = Boundary("under test", case.source, case.destination)
    for place in {*boundary.source_places, *boundary.destination_places}:
        layouts = layouts_for(boundary, case.plan, case.microbatch, place)
        routes = layouts.routes()
        assert layouts.forward(place, routes) == case.forward[place]
        assert layouts.backward(place, routes) == case.backward[place]
        held = holding_of(layouts.destination, place)
        assert (held is None) == (place not in boundary.destination_places)
        assert held is None or held == holding_of(case.layouts.destination, place)


@settings(max_examples=50)
@given(boundary_cases(), st.integers(0, 1))
def test_a_ranks_exchanges_are_its_part_of_the_whole(case: BoundaryCase, span: int) -> None:
    boundary = Boundary("under test", case.source, case.destination, Reach(span))
    plan, whole = case.plan, []
    for microbatch in range(plan.num_microbatches):
        layouts = boundary.layouts(plan, microbatch)
        try:
            whole.append((layouts, layouts.routes()))
        except PlanError:  # the LLM takes a sample before its encoder, or beyond the span
            reject()
    for place in {*boundary.source_places, *boundary.destination_places}:
        expected = tuple(
            RankExchanges(
                layouts.forward(place, routes),
                layouts.backward(place, routes),
                tuple(held.rows) if (held := holding_of(layouts.destination, place)) else (),
            )
            for layouts, routes in whole
        )
        assert boundary.exchanges(plan, place) == expected


@pytest.mark.parametrize("tp", [1, 8])
def test_a_rank_of_a_large_job_finds_its_part_of_the_whole(tp: int) -> None:
    case = case_in_order([3, 0, 5, 1] * 24, Grid(dp=32), Grid(tp=tp, dp=8), first_destination=32)
    language = replace(case.destination, sequence_parallel=tp > 1)
    boundary = Boundary("under test", case.source, language)
    layouts = boundary.layouts(case.plan, 0)
    routes = layouts.routes()
    for place in range(32 + language.grid.size):
        [found] = boundary.exchanges(case.plan, place)
        assert found.forward == layouts.forward(place, routes)
        assert found.backward == layouts.backward(place, routes)


def test_a_rank_of_many_looks_at_few() -> None:
    case = case_in_order([3] * 64, Grid(dp=32), Grid(dp=8), first_destination=32)
    boundary = Boundary("under test", case.source, case.destination)
    layouts = layouts_for(boundary, case.plan, 0, 32)
    assert len(layouts.source.places) == 4 and layouts.destination.places == (32,)


def test_a_rank_that_shares_a_lanes_rows_looks_at_its_own_rows_alone() -> None:
    case = case_in_order([6] * 32, Grid(dp=32), Grid(tp=8, dp=2), first_destination=32)
    language = replace(case.destination, sequence_parallel=True)
    layouts = layouts_for(Boundary("under test", case.source, language), case.plan, 0, 33)
    assert len(layouts.source.places) == 2 and layouts.destination.places == (33,)
