"""Random boundaries: a step plan and the two sides that its tokens travel between."""

from dataclasses import dataclass
from functools import cached_property
from itertools import permutations

from hypothesis import strategies as st

from disagg_train.boundary.exchange import BoundaryLayouts
from disagg_train.boundary.layouts import Side, destination_layout, source_layout
from disagg_train.planner.step_plan import Assignment, SampleSize, Slot, StepPlan
from disagg_train.topology.grid import AXES, Grid
from tests.unit.boundary.oracle import Buffers, destination_buffers, source_buffers

ENCODER, LANGUAGE = "vision", "language"


@dataclass(frozen=True)
class BoundaryCase:
    """One microbatch of one boundary."""

    plan: StepPlan
    source: Side
    destination: Side
    microbatch: int

    @cached_property
    def held(self) -> Buffers:
        """The oracle's buffer of every source rank."""
        return source_buffers(self.plan, self.source, self.microbatch)

    @cached_property
    def needed(self) -> Buffers:
        """The oracle's buffer of every destination rank."""
        return destination_buffers(self.plan, ENCODER, self.destination, self.microbatch)

    @cached_property
    def layouts(self) -> BoundaryLayouts:
        """The layouts under test."""
        source = source_layout(self.plan, self.source, self.microbatch)
        destination = destination_layout(self.plan, ENCODER, self.destination, self.microbatch)
        num_rows = tuple(len(self.held[place]) for place in source.places)
        return BoundaryLayouts(source, destination, num_rows)

    @property
    def places(self) -> list[int]:
        """Every process of either side."""
        return sorted({*self.source.places, *self.destination.places})


@st.composite
def samples(draw: st.DrawFn, key: int) -> SampleSize:
    """Draw a sample of 0 to 7 encoder tokens in slots anywhere in its sequence."""
    counts = draw(st.sampled_from([(), (3,), (1, 2), (7,), (2, 3, 1), (5,), (1,), (4, 2)]))
    slots, position = [], 0
    for count in counts:
        position += draw(st.integers(0, 3))
        slots.append(Slot(position, count))
        position += count
    length = max(position + draw(st.integers(0, 3)), 1)
    return SampleSize(key, length, length - 1, {ENCODER: tuple(slots)} if slots else {})


@st.composite
def assignments(
    draw: st.DrawFn, microbatch_of: list[int], num_microbatches: int, dp: int
) -> Assignment:
    """Draw which dp rank holds each sample, and in which order; microbatches are given."""
    lanes: list[list[list[int]]] = [[[] for _ in range(dp)] for _ in range(num_microbatches)]
    for i in draw(st.permutations(range(len(microbatch_of)))):
        lanes[microbatch_of[i]][draw(st.integers(0, dp - 1))].append(i)
    return tuple(tuple(tuple(lane) for lane in microbatch) for microbatch in lanes)


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    """Draw dp and tp of 1 to 4, sometimes two pipeline stages, in any order of the axes."""
    order = draw(st.sampled_from(list(permutations(AXES))))
    dp, tp = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return Grid(tp=tp, dp=dp, pp=draw(st.sampled_from([1, 1, 2])), order=order)


@st.composite
def boundary_cases(draw: st.DrawFn, disjoint: bool | None = None) -> BoundaryCase:
    """Draw a boundary; ``disjoint`` says whether no, or the same, processes are on both sides.

    Left out, the two sides may also overlap in part.
    """
    source_grid, destination_grid = draw(grids(), label="source"), draw(grids(), label="to")
    if disjoint is None:
        first = draw(st.integers(0, source_grid.size), label="first destination place")
    else:
        first = source_grid.size if disjoint else 0
    plan, microbatch = draw(plans(source_grid.dp, destination_grid.dp), label="plan")
    places = draw(st.permutations(range(first, first + destination_grid.size)))
    source_places = tuple(range(source_grid.size))
    return BoundaryCase(
        plan,
        Side(ENCODER, source_grid, source_places, draw(st.booleans(), label="source sp")),
        Side(LANGUAGE, destination_grid, tuple(places), draw(st.booleans(), label="to sp")),
        microbatch,
    )


@st.composite
def plans(draw: st.DrawFn, source_dp: int, destination_dp: int) -> tuple[StepPlan, int]:
    """Draw a step plan of one or two microbatches, and one of them."""
    drawn = tuple(draw(samples(i)) for i in range(draw(st.integers(0, 6), label="samples")))
    num_microbatches = draw(st.integers(1, 2))
    microbatch_of = [draw(st.integers(0, num_microbatches - 1)) for _ in drawn]
    dp_of = {ENCODER: source_dp, LANGUAGE: destination_dp}
    assignment = {
        module: draw(assignments(microbatch_of, num_microbatches, dp))
        for module, dp in dp_of.items()
    }
    return StepPlan(0, drawn, assignment), draw(st.integers(0, num_microbatches - 1))
