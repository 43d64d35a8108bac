"""Layouts of a boundary, derived from a step plan, against the plain oracle."""

from hypothesis import given

from disagg_train.boundary.layouts import Side, destination_layout, holding_of, source_layout
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Layout
from tests.unit.boundary.oracle import Buffers, Stream, groups
from tests.unit.boundary.strategies import ENCODER, LANGUAGE, BoundaryCase, boundary_cases


def streams_of(layout: Layout, like: Buffers) -> dict[int, Stream]:
    """Lay every holding's tokens out at its rows, in buffers as long as the oracle's."""
    streams: dict[int, Stream] = {}
    for place, holding in zip(layout.places, layout.holdings, strict=True):
        streams[place] = [None] * len(like[place])
        for row, token in zip(holding.rows, holding.token_ids, strict=True):
            streams[place][row] = token
    return streams


def replica_places(layout: Layout) -> list[tuple[int, ...]]:
    return sorted(tuple(sorted(layout.places[i] for i in group)) for group in layout.replicas)


@given(boundary_cases())
def test_the_source_holds_its_samples_tokens_in_assignment_order(case: BoundaryCase) -> None:
    assert streams_of(case.layouts.source, case.held) == case.held


@given(boundary_cases())
def test_the_destination_needs_tokens_where_the_slots_are(case: BoundaryCase) -> None:
    assert streams_of(case.layouts.destination, case.needed) == case.needed


@given(boundary_cases())
def test_replicas_are_tp_groups_or_single_ranks_under_sequence_parallelism(
    case: BoundaryCase,
) -> None:
    last = case.source.grid.pp - 1
    for layout, side, stage in (
        (case.layouts.source, case.source, last),
        (case.layouts.destination, case.destination, 0),
    ):
        expected = sorted(tuple(sorted(group)) for group in groups(side, stage))
        assert replica_places(layout) == expected


@given(boundary_cases())
def test_only_ranks_of_the_boundarys_stage_have_a_holding(case: BoundaryCase) -> None:
    for place in case.places:
        assert (holding_of(case.layouts.source, place) is None) == (place not in case.held)
        assert (holding_of(case.layouts.destination, place) is None) == (place not in case.needed)


def plan_of(sizes: list[int], **lanes: list[list[int]]) -> StepPlan:
    samples = tuple(
        SampleSize(i, size + 2, 1, {ENCODER: (Slot(1, size),)} if size else {})
        for i, size in enumerate(sizes)
    )
    assignment = {m: (tuple(tuple(lane) for lane in split),) for m, split in lanes.items()}
    return StepPlan(0, samples, assignment)


def num_tokens(layout: Layout) -> list[int]:
    return [holding.num_tokens for holding in layout.holdings]


def test_sizes_0_3_1_2_over_two_replicas_are_3_and_3_rows() -> None:
    plan = plan_of([0, 3, 1, 2], vision=[[0, 1], [2, 3]], language=[[0, 1, 2, 3]])
    side = Side(ENCODER, Grid(dp=2), (0, 1))
    assert num_tokens(source_layout(plan, side, 0)) == [3, 3]


def test_dp4_with_577_rows_each_is_2308_rows_on_dp1() -> None:
    plan = plan_of([577] * 4, vision=[[0], [1], [2], [3]], language=[[0, 1, 2, 3]])
    source = source_layout(plan, Side(ENCODER, Grid(dp=4), (0, 1, 2, 3)), 0)
    destination = destination_layout(plan, ENCODER, Side(LANGUAGE, Grid(), (4,)), 0)
    assert num_tokens(source) == [577] * 4
    assert num_tokens(destination) == [2308]


def test_dp1_with_2308_rows_is_577_rows_each_on_dp4() -> None:
    plan = plan_of([577] * 4, vision=[[0, 1, 2, 3]], language=[[0], [1], [2], [3]])
    source = source_layout(plan, Side(ENCODER, Grid(), (0,)), 0)
    destination = destination_layout(plan, ENCODER, Side(LANGUAGE, Grid(dp=4), (1, 2, 3, 4)), 0)
    assert num_tokens(source) == [2308]
    assert num_tokens(destination) == [577] * 4


def test_a_text_only_microbatch_has_layouts_without_tokens() -> None:
    plan = plan_of([0, 0], vision=[[0, 1]], language=[[1], [0]])
    destination = Side(LANGUAGE, Grid(tp=2, dp=2), (1, 2, 3, 4), sequence_parallel=True)
    assert num_tokens(source_layout(plan, Side(ENCODER, Grid(), (0,)), 0)) == [0]
    assert num_tokens(destination_layout(plan, ENCODER, destination, 0)) == [0] * 4
