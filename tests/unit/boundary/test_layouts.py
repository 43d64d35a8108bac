"""Layouts of a boundary, derived from a step plan, against the plain oracle."""

import pytest
from hypothesis import given

from disagg_train.boundary.layouts import Side, destination_layout, holding_of
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import Grid
from disagg_train.topology.layout import Layout
from tests.unit.boundary.oracle import Buffers, Stream, text_buffers
from tests.unit.boundary.strategies import (
    ENCODER,
    LANGUAGE,
    BoundaryCase,
    boundary_cases,
    two_encoders,
)
from tests.unit.boundary.views import destination_streams, source_layout, source_rows


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
def test_the_source_holds_its_images_tokens_in_assignment_order(case: BoundaryCase) -> None:
    assert streams_of(case.layouts.source, case.held) == case.held


@given(boundary_cases())
def test_source_rows_count_the_padding_too(case: BoundaryCase) -> None:
    rows = source_rows(case.plan, case.source, [case.microbatch])
    places = case.layouts.source.places
    assert dict(zip(places, rows, strict=True)) == {p: len(s) for p, s in case.held.items()}
    assert case.layouts.source_rows == rows


@given(boundary_cases())
def test_the_destination_needs_tokens_where_the_slots_are(case: BoundaryCase) -> None:
    assert streams_of(case.layouts.destination, case.needed) == case.needed


@given(boundary_cases())
def test_destination_rows_count_the_padding_too(case: BoundaryCase) -> None:
    side = case.destination
    streams = destination_streams(case.plan, side, case.microbatch)
    dp_ranks = {place: side.grid.coordinates(rank)["dp"] for rank, place in enumerate(side.places)}
    rows = {place: streams[dp_ranks[place]].num_shard_rows for place in case.needed}
    assert rows == {place: len(stream) for place, stream in case.needed.items()}
    assert not side.equal_lanes or len(set(rows.values())) == 1


@given(two_encoders())
def test_two_encoders_rows_never_collide_nor_fall_on_text(
    cases: tuple[BoundaryCase, BoundaryCase],
) -> None:
    one, other = cases
    text = text_buffers(one.plan, one.destination, one.microbatch)
    for place, stream in text.items():
        text_rows = {row for row, value in enumerate(stream) if value is not None}
        holdings = [holding_of(case.layouts.destination, place) for case in cases]
        first, second = (set(holding.rows) for holding in holdings if holding is not None)
        assert not first & second
        assert not (first | second) & text_rows


@given(two_encoders())
def test_each_of_two_encoders_has_its_own_token_ids(
    cases: tuple[BoundaryCase, BoundaryCase],
) -> None:
    for case in cases:
        assert streams_of(case.layouts.source, case.held) == case.held
        assert streams_of(case.layouts.destination, case.needed) == case.needed


@given(boundary_cases())
def test_replicas_are_tp_groups_or_single_ranks_under_sequence_parallelism(
    case: BoundaryCase,
) -> None:
    for layout, expected in (
        (case.layouts.source, case.senders),
        (case.layouts.destination, case.receivers),
    ):
        assert replica_places(layout) == sorted(tuple(sorted(group)) for group in expected)


@given(boundary_cases())
def test_only_ranks_of_the_boundarys_stage_have_a_holding(case: BoundaryCase) -> None:
    for place in case.places:
        assert (holding_of(case.layouts.source, place) is None) == (place not in case.held)
        assert (holding_of(case.layouts.destination, place) is None) == (place not in case.needed)


@given(boundary_cases())
def test_equal_lanes_give_every_source_rank_equally_many_rows(case: BoundaryCase) -> None:
    rows = source_rows(case.plan, case.source, [case.microbatch])
    assert not case.source.equal_lanes or len(set(rows)) == 1


def plan_of(sizes: list[int], **lanes: list[list[int]]) -> StepPlan:
    """Return samples of one text token, ``size`` image tokens and one more text token."""
    samples = tuple(
        SampleSize(i, size + 2, 1, {ENCODER: (Slot(1, size),)} if size else {})
        for i, size in enumerate(sizes)
    )
    assignment = {m: (tuple(tuple(lane) for lane in split),) for m, split in lanes.items()}
    return StepPlan(0, samples, assignment)


def rows_by_place(layout: Layout) -> list[list[tuple[int, int]]]:
    """Return (row, token) pairs of every rank."""
    pairs = [zip(h.rows, h.token_ids, strict=True) for h in layout.holdings]
    return [list(rank) for rank in pairs]


def test_a_text_only_microbatch_has_layouts_without_tokens() -> None:
    plan = plan_of([0, 0], vision=[[0, 1]], language=[[1], [0]])
    side = Side(LANGUAGE, Grid(tp=2, dp=2), (1, 2, 3, 4), sequence_parallel=True)
    source = source_layout(plan, Side(ENCODER, Grid(), (0,)), [0])
    destination = destination_layout(plan, ENCODER, side, 0)
    assert [holding.num_tokens for holding in source.holdings] == [0]
    assert [holding.num_tokens for holding in destination.holdings] == [0] * 4


def test_a_packed_sample_of_6_over_cp2_is_padded_to_8_and_cut_into_4_chunks() -> None:
    # t 0 | 1 2 | 3 t | . . : rank 0 holds the first and last chunk, rank 1 those between
    plan = plan_of([4], vision=[[0]], language=[[0]])
    layout = destination_layout(plan, ENCODER, Side(LANGUAGE, Grid(cp=2), (1, 2)), 0)
    assert rows_by_place(layout) == [[(1, 0)], [(0, 1), (1, 2), (2, 3)]]


def test_a_padded_lane_keeps_a_samples_rows_together_on_every_rank() -> None:
    # two sequences of 8: t 0 1 2 3 t . . and t 4 t . . . . . ; S = 8 / cp 2 / tp 2 = 2
    plan = plan_of([4, 1], vision=[[0, 1]], language=[[0, 1]])
    side = Side(LANGUAGE, Grid(cp=2, tp=2), (1, 2, 3, 4), sequence_parallel=True, packed=False)
    layout = destination_layout(plan, ENCODER, side, 0)
    assert rows_by_place(layout) == [[(1, 0), (3, 4)], [], [(0, 1), (1, 2)], [(0, 3)]]


@pytest.mark.parametrize(
    ("grid", "sequence_parallel", "rows"),
    [
        (Grid(), False, [5]),
        (Grid(tp=2), False, [5, 5]),
        (Grid(tp=2), True, [3, 3]),
        (Grid(cp=2), True, [4, 4]),  # 5 tokens padded to 8
        (Grid(cp=2, tp=3), True, [2] * 6),  # 8 / cp 2 = 4, padded to lcm(2, 3) = 6
    ],
)
def test_5_image_tokens_are_this_many_source_rows(
    grid: Grid, sequence_parallel: bool, rows: list[int]
) -> None:
    plan = plan_of([5], vision=[[0]])
    side = Side(ENCODER, grid, tuple(range(grid.size)), sequence_parallel)
    assert list(source_rows(plan, side, [0])) == rows


def test_every_image_of_a_sample_is_padded_for_itself() -> None:
    slots = (Slot(0, 1), Slot(1, 2))
    plan = StepPlan(0, (SampleSize(0, 3, 1, {ENCODER: slots}),), {ENCODER: (((0,),),)})
    side = Side(ENCODER, Grid(cp=2), (0, 1))
    assert source_rows(plan, side, [0]) == (4, 4)
    assert rows_by_place(source_layout(plan, side, [0])) == [[(0, 0), (2, 1)], [(2, 2)]]


def test_a_class_token_behind_every_image_is_a_row_that_nobody_is_sent() -> None:
    slots = (Slot(0, 1), Slot(1, 2))
    plan = StepPlan(0, (SampleSize(0, 3, 1, {ENCODER: slots}),), {ENCODER: (((0,),),)})
    side = Side(ENCODER, Grid(), (0,), extra_tokens=1)  # rows 0 | class | 1 2 | class
    assert source_rows(plan, side, [0]) == (5,)
    assert rows_by_place(source_layout(plan, side, [0])) == [[(0, 0), (2, 1), (3, 2)]]
    cut = Side(ENCODER, Grid(cp=2), (0, 1), extra_tokens=1)  # 0 c . . | 1 2 c . in 4 chunks each
    assert rows_by_place(source_layout(plan, cut, [0])) == [[(0, 0), (2, 1)], [(2, 2)]]


def test_equal_lanes_pad_the_short_lane_but_not_all_empty_ones() -> None:
    plan = plan_of([3, 0, 4], vision=[[0, 2], [1]])
    side = Side(ENCODER, Grid(dp=2), (0, 1), equal_lanes=True)
    assert source_rows(plan, side, [0]) == (7, 7)
    empty = plan_of([0], vision=[[0], []])
    assert source_rows(empty, side, [0]) == (0, 0)


def test_equal_padded_lanes_have_the_most_sequences_and_the_longest_of_any_lane() -> None:
    plan = plan_of([3, 0, 4], language=[[0, 2], [1]])
    side = Side(LANGUAGE, Grid(dp=2), (0, 1), packed=False, equal_lanes=True)
    streams = destination_streams(plan, side, 0)
    assert [stream.num_shard_rows for stream in streams] == [12, 12]
