"""Boxes of tensors: which part of a full tensor a rank's shard of it is.

A tensor-parallel rank holds blocks of a full tensor, and the distributed optimizer a range of
the flattened rest; as boxes of the full tensor all layouts look alike.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Box:
    """A part of a tensor.

    Args:
        offsets: where it begins, per dimension.
        sizes: how far it reaches, per dimension.
    """

    offsets: Shape
    sizes: Shape

    @property
    def count(self) -> int:
        """Elements in the box."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Cut:
    """How a full tensor is cut over ranks.

    Args:
        dim: that is cut.
        stride: blocks of that dimension, each of which is cut (SwiGLU's first matrix has two).
        rank: whose part it is.
        num_ranks: parts in all.
    """

    dim: int
    stride: int
    rank: int
    num_ranks: int


def whole(shape: Sequence[int]) -> Box:
    """Return the box that is all of a tensor."""
    return Box((0,) * len(shape), tuple(shape))


def range_boxes(shape: Sequence[int], start: int, end: int) -> Iterator[Box]:
    """Yield boxes that tile a range of a flattened tensor, in its order.

    Args:
        shape: of the tensor.
        start: first element of the range.
        end: one past the last.
    """
    if start >= end:
        return
    if not shape or (start, end) == (0, math.prod(shape)):
        yield whole(shape)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), end // row
    if first > last:  # inside one row
        yield from _in_row(shape, last, start, end)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        rest = tuple(shape[1:])
        yield Box((first, *(0 for _ in rest)), (last - first, *rest))
    yield from _in_row(shape, last, last * row, end)


def _in_row(shape: Sequence[int], index: int, start: int, end: int) -> Iterator[Box]:
    base = index * math.prod(shape[1:])
    for box in range_boxes(shape[1:], start - base, end - base):
        yield Box((index, *box.offsets), (1, *box.sizes))


def full_shape(shape: Sequence[int], cut: Cut | None) -> Shape:
    """Return the shape of the full tensor of which a rank holds a part of this shape."""
    full = list(shape)
    if cut is not None:
        full[cut.dim] *= cut.num_ranks
    return tuple(full)


def placed(box: Box, shape: Sequence[int], cut: Cut | None) -> Iterator[tuple[Box, Box]]:
    """Yield the parts of a box of a rank's tensor, each with where it is in the full tensor.

    Args:
        box: in the rank's own tensor.
        shape: of the rank's own tensor.
        cut: how it was cut out of the full one; None if it is the full one.

    Yields:
        (the part inside the rank's box, counted from the box's own corner; the same part in the
        full tensor).
    """
    if cut is None:
        yield whole(box.sizes), box
        return
    dim, size = cut.dim, shape[cut.dim] // cut.stride
    begin, end = box.offsets[dim], box.offsets[dim] + box.sizes[dim]
    for block in range(begin // size, -(-end // size)):
        low, high = max(begin, block * size), min(end, (block + 1) * size)
        shifted = low - block * size + (block * cut.num_ranks + cut.rank) * size
        sizes = _replaced(box.sizes, dim, high - low)
        corner = (0,) * len(shape)
        yield (
            Box(_replaced(corner, dim, low - begin), sizes),
            Box(_replaced(box.offsets, dim, shifted), sizes),
        )


def _replaced(values: Shape, dim: int, value: int) -> Shape:
    return (*values[:dim], value, *values[dim + 1 :])
