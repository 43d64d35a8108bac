"""Grids: ranks by axis, in any order of the axes."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.topology.grid import AXES, Grid

MEGATRON_ORDER = ("tp", "cp", "pp", "dp")


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    degrees = {axis: draw(st.integers(1, 3), label=axis) for axis in AXES}
    return Grid(**degrees, order=draw(st.sampled_from(list(permutations(AXES)))))


def last_stage_tp_groups(grid: Grid) -> list[list[int]]:
    stage = set(grid.stage(-1))
    return [list(group) for group in grid.groups("tp") if group[0] in stage]


def test_with_dp_before_pp_the_last_stage_holds_the_last_ranks() -> None:
    assert last_stage_tp_groups(Grid(tp=2, dp=2, pp=2)) == [[4, 5], [6, 7]]


@pytest.mark.parametrize("order", [MEGATRON_ORDER, ("tp", "pp", "dp", "cp")])
def test_with_pp_before_dp_the_last_stage_is_every_second_tp_group(order: tuple[str, ...]) -> None:
    assert last_stage_tp_groups(Grid(tp=2, dp=2, pp=2, order=order)) == [[2, 3], [6, 7]]


def test_tp_varies_fastest_then_cp_dp_pp() -> None:
    grid = Grid(tp=2, cp=2, dp=2, pp=2)
    assert [grid.rank(**{axis: 1}) for axis in AXES] == [1, 2, 4, 8]


def test_tp2_dp2_has_dp_coordinates_0_0_1_1() -> None:
    grid = Grid(tp=2, dp=2)
    assert [(grid.coordinates(r)["dp"], grid.coordinates(r)["tp"]) for r in range(4)] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@given(grids())
def test_rank_and_coordinates_are_inverse(grid: Grid) -> None:
    assert [grid.rank(**grid.coordinates(rank)) for rank in range(grid.size)] == list(
        range(grid.size)
    )


@given(grids(), st.sets(st.sampled_from(AXES)))
def test_groups_partition_the_ranks(grid: Grid, axes: set[str]) -> None:
    ranks = [rank for group in grid.groups(*axes) for rank in group]
    assert sorted(ranks) == list(range(grid.size))


@given(grids(), st.sets(st.sampled_from(AXES)))
def test_ranks_of_a_group_are_alike_on_every_other_axis(grid: Grid, axes: set[str]) -> None:
    others = set(AXES) - axes
    for group in grid.groups(*axes):
        seen = {tuple(grid.coordinates(rank)[axis] for axis in sorted(others)) for rank in group}
        assert len(seen) == 1


@given(grids())
def test_stages_partition_the_ranks_and_negative_ones_count_from_the_end(grid: Grid) -> None:
    stages = [grid.stage(pp) for pp in range(grid.pp)]
    assert sorted(rank for stage in stages for rank in stage) == list(range(grid.size))
    assert [grid.stage(pp - grid.pp) for pp in range(grid.pp)] == stages


def test_an_axis_order_that_misses_an_axis_is_refused() -> None:
    with pytest.raises(PlanError, match=r"axis order .* must name each of"):
        Grid(order=("tp", "tp", "dp", "pp"))


@pytest.mark.parametrize("rank", [-1, 4])
def test_a_rank_outside_the_grid_is_refused(rank: int) -> None:
    with pytest.raises(PlanError, match=rf"rank {rank} is outside the grid's 0\.\.3"):
        Grid(tp=4).coordinates(rank)


def test_an_unknown_axis_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"unknown axes \['ep'\]; the grid has \['tp', 'cp'"):
        Grid().rank(ep=1)


def test_a_coordinate_outside_its_axis_is_refused() -> None:
    with pytest.raises(PlanError, match=r"dp=2 is outside 0\.\.1"):
        Grid(dp=2).rank(dp=2)
