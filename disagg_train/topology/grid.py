"""A module's ranks by axis: which rank sits at which tp, cp, dp, pp coordinate."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod

from disagg_train.errors import PlanError

AXES = ("tp", "cp", "dp", "pp")


@dataclass(frozen=True)
class Grid:
    """Ranks ``0 .. size-1`` of one module, laid out over named axes.

    The first axis of ``order`` varies fastest. Expert parallelism regroups dp * cp
    and adds no ranks, so it is no axis of the grid.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    order: tuple[str, ...] = AXES

    def __post_init__(self) -> None:
        if sorted(self.order) != sorted(AXES):
            raise PlanError(f"axis order {self.order} must name each of {AXES} once")

    @property
    def degrees(self) -> dict[str, int]:
        """Degree of every axis, in the order of the axes."""
        return {axis: getattr(self, axis) for axis in self.order}

    @cached_property
    def size(self) -> int:
        """Number of ranks."""
        return prod(self.degrees.values())

    @cached_property
    def _coordinates(self) -> tuple[dict[str, int], ...]:
        slowest_first = [range(degree) for degree in reversed(self.degrees.values())]
        names = self.order[::-1]
        return tuple(dict(zip(names, point, strict=True)) for point in product(*slowest_first))

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Return the coordinate of ``rank`` on every axis."""
        if not 0 <= rank < self.size:
            raise PlanError(f"rank {rank} is outside the grid's 0..{self.size - 1}")
        return self._coordinates[rank]

    def rank(self, **coordinates: int) -> int:
        """Return the rank at the given coordinates; axes that are left out count as 0."""
        unknown = set(coordinates) - set(self.order)
        if unknown:
            raise PlanError(f"unknown axes {sorted(unknown)}; the grid has {list(self.order)}")
        rank, stride = 0, 1
        for axis, degree in self.degrees.items():
            at = coordinates.get(axis, 0)
            if not 0 <= at < degree:
                raise PlanError(f"{axis}={at} is outside 0..{degree - 1}")
            rank, stride = rank + at * stride, stride * degree
        return rank

    def groups(self, *axes: str) -> tuple[tuple[int, ...], ...]:
        """Return the rank groups along ``axes``: ranks alike on every other axis."""
        fixed = [axis for axis in self.order if axis not in axes]
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank, point in enumerate(self._coordinates):
            groups.setdefault(tuple(point[axis] for axis in fixed), []).append(rank)
        return tuple(tuple(group) for group in groups.values())

    def stage(self, pp: int) -> tuple[int, ...]:
        """Return the ranks of pipeline stage ``pp`` (negative counts from the end)."""
        wanted = pp % self.pp
        return tuple(r for r, point in enumerate(self._coordinates) if point["pp"] == wanted)
