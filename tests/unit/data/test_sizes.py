"""A table of sizes is what a list of sizes would be."""

import numpy as np
import pytest

from disagg_train.data.sizes import InputSizes, SizeTable
from disagg_train.planner.step_plan import SampleSize, Slot


def _table(positions: tuple[int, ...] = (2, 0, 5), weight: float = 1.0) -> SizeTable:
    inputs = InputSizes(
        np.array([1, 0, 1], np.int16),
        np.array(positions, np.int32),
        np.array([3, 4, 2], np.int32),
        np.array([12, 16, 8], np.int32),
    )
    return SizeTable(
        np.array([7, 2**63, 9], np.uint64),
        np.array([6, 5, 9], np.int32),
        np.array([1, 2, 3], np.int32),
        np.full(3, weight),
        np.array([0, 1, 1, 3]),
        inputs,
        ("speech", "vision"),
    )


def test_rows_are_sample_sizes() -> None:
    both = {"speech": (Slot(0, 4),), "vision": (Slot(5, 2),)}
    assert list(_table()) == [
        SampleSize(7, 6, 1, {"vision": (Slot(2, 3),)}, {"vision": (12,)}),
        SampleSize(2**63, 5, 2),
        SampleSize(9, 9, 3, both, {"speech": (16,), "vision": (8,)}),
    ]
    assert _table()[-1] == _table()[2]
    assert list(_table()[:2]) == list(_table())[:2]
    with pytest.raises(IndexError):
        _table()[3]


def test_taking_samples_away_leaves_the_others_as_they_were() -> None:
    sizes = list(_table())
    assert list(_table().without({7})) == sizes[1:]
    assert list(_table().without({9, 2**63})) == sizes[:1]


@pytest.mark.parametrize(
    ("positions", "unknown", "most", "rows"),
    [
        ((2, 0, 5), [], None, []),
        ((2, 0, 5), [0], None, [2]),
        ((4, 0, 5), [], None, [0]),
        ((2, 0, 3), [], None, [2]),
        ((2, 5, 0), [], None, [2]),
        ((2, 0, 5), [], 5, [0, 2]),
    ],
)
def test_samples_that_break_a_rule_are_found(
    positions: tuple[int, ...], unknown: list[int], most: int | None, rows: list[int]
) -> None:
    assert _table(positions).suspects(unknown, most) == rows
