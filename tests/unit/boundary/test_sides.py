"""A side's ranks by pipeline stage, and which of them hold equal tokens."""

import pytest
from hypothesis import given

from disagg_train.boundary.layouts import Side
from disagg_train.topology.grid import AXES, Grid
from tests.unit.boundary.oracle import groups
from tests.unit.boundary.strategies import ENCODER, grids, sides

MEGATRON_ORDER = ("tp", "cp", "pp", "dp")


@given(grids().flatmap(lambda grid: sides(ENCODER, grid, first=3)))
def test_replicas_are_those_that_the_oracle_calls_equal(side: Side) -> None:
    for stage in range(side.grid.pp):
        alike = {place: group for group in groups(side, stage) for place in group}
        for place in side.places:
            group = alike.get(place, ())
            assert sorted(side.replicas_of(stage, place)) == (
                sorted(group) if len(group) > 1 else []
            )


@given(grids().flatmap(lambda grid: sides(ENCODER, grid)))
def test_replicas_name_their_group_in_the_same_order(side: Side) -> None:
    for place in side.stage_places(0):
        group = side.replicas_of(0, place)
        assert all(side.replicas_of(0, other) == group for other in group)


@given(grids().flatmap(lambda grid: sides(ENCODER, grid)))
def test_every_place_is_on_one_stage(side: Side) -> None:
    stages = [side.stage_places(stage) for stage in range(side.grid.pp)]
    assert sorted(place for stage in stages for place in stage) == sorted(side.places)
    assert side.stage_places(-1) == stages[-1]
    for number, places in enumerate(stages):
        at = [side.grid.coordinates(side.places.index(place))["pp"] for place in places]
        assert set(at) == {number}


@pytest.mark.parametrize(
    ("order", "stages", "pairs_of_last"),
    [
        (AXES, [(10, 11, 12, 13), (14, 15, 16, 17)], [(14, 15), (16, 17)]),
        (MEGATRON_ORDER, [(10, 11, 14, 15), (12, 13, 16, 17)], [(12, 13), (16, 17)]),
    ],
    ids=["our order", "megatron's order"],
)
def test_tp2_dp2_pp2_in_either_order_of_axes(
    order: tuple[str, ...], stages: list[tuple[int, ...]], pairs_of_last: list[tuple[int, int]]
) -> None:
    side = Side(ENCODER, Grid(tp=2, dp=2, pp=2, order=order), tuple(range(10, 18)))
    assert [side.stage_places(0), side.stage_places(1)] == stages
    assert [side.replicas_of(-1, place) for place in stages[1]] == [
        pair for pair in pairs_of_last for _ in pair
    ]
    assert [side.replicas_of(-1, place) for place in stages[0]] == [()] * 4


def test_under_sequence_parallelism_every_rank_is_alone() -> None:
    side = Side(ENCODER, Grid(tp=4), (0, 1, 2, 3), sequence_parallel=True)
    assert [side.replicas_of(0, place) for place in side.places] == [()] * 4


def test_a_stranger_has_no_replicas() -> None:
    assert Side(ENCODER, Grid(tp=2), (0, 1)).replicas_of(0, 7) == ()
