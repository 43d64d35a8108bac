"""Boxes of a rank's shard tile it exactly, and those of all ranks the full tensor."""

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.checkpoint.regions import Box, Cut, full_shape, placed, range_boxes, whole

shapes = st.lists(st.integers(1, 5), max_size=4).map(tuple)


def _slices(box: Box) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(box.offsets, box.sizes, strict=True))


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    start = draw(st.integers(0, prod(shape)))
    return shape, start, draw(st.integers(start, prod(shape)))


@given(ranges())
def test_boxes_of_a_range_tile_it_in_its_order(case: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, end = case
    numbers = np.arange(prod(shape)).reshape(shape)
    boxes = list(range_boxes(shape, start, end))
    found = [number for box in boxes for number in numbers[_slices(box)].ravel()]
    assert found == list(range(start, end))
    assert all(box.count for box in boxes)
    assert len(boxes) <= max(1, 2 * len(shape) - 1)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int, int]:
    """Draw a full shape, and the dim, stride and number of ranks that it is cut by."""
    dim = draw(st.integers(0, 2))
    stride, num_ranks = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(dim + 1, 3)))]
    shape[dim] *= stride * num_ranks
    return tuple(shape), dim, stride, num_ranks


def _shard(full: np.ndarray, cut: Cut) -> np.ndarray:
    """Cut as ``modules.weights.shard`` does."""
    pieces = np.split(full, cut.stride * cut.num_ranks, axis=cut.dim)
    return np.concatenate(pieces[cut.rank :: cut.num_ranks], axis=cut.dim)


@given(cuts(), st.data())
def test_ranges_of_all_ranks_shards_tile_the_full_tensor(
    case: tuple[tuple[int, ...], int, int, int], data: st.DataObject
) -> None:
    shape, dim, stride, num_ranks = case
    full = np.arange(prod(shape)).reshape(shape)
    times_held = np.zeros(shape, dtype=int)
    for rank in range(num_ranks):
        cut = Cut(dim, stride, rank, num_ranks)
        local = _shard(full, cut)
        assert full_shape(local.shape, cut) == shape
        middle = data.draw(st.integers(0, local.size))
        for start, end in ((0, middle), (middle, local.size)):
            for box in range_boxes(local.shape, start, end):
                for inside, there in placed(box, local.shape, cut):
                    mine = local[_slices(box)][_slices(inside)]
                    assert (mine == full[_slices(there)]).all()
                    times_held[_slices(there)] += 1
    assert (times_held == 1).all()


@given(shapes)
def test_what_is_not_cut_stays_where_it_is(shape: tuple[int, ...]) -> None:
    assert list(placed(whole(shape), shape, None)) == [(whole(shape), whole(shape))]
