"""Random boundaries: a step plan and the two sides that its tokens travel between."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations, product
from math import prod
from typing import Literal

from hypothesis import strategies as st

from disagg_train.boundary.exchange import BoundaryLayouts, Exchange
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.routes import Route
from disagg_train.boundary.step_exchanges import Boundary
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import Assignment, SampleSize, Slot, StepPlan
from disagg_train.topology.grid import AXES, Grid
from tests.unit.boundary.oracle import (
    Buffers,
    destination_buffers,
    groups,
    source_buffers,
    tokens_in,
)

ENCODER, OTHER_ENCODER, LANGUAGE = "vision", "audio", "language"

Shared = Literal["none", "all", "any"]
"""Which processes are on both sides: none, all of them, or anything between."""

_MOST_RANKS = 16
_DEGREES = sorted(
    (d for d in product(range(1, 5), repeat=4) if prod(d) <= _MOST_RANKS),
    key=lambda d: (d[-1] > 1, prod(d)),
)
_ONE_STAGE = [d for d in _DEGREES if d[-1] == 1]


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
        encoder = self.source.module
        return destination_buffers(self.plan, encoder, self.destination, self.microbatch)

    def held_by(self, place: int) -> set[int]:
        """Return the tokens that a process holds on the source side."""
        return tokens_in(self.held.get(place, []))

    def needed_by(self, place: int) -> set[int]:
        """Return the tokens that a process needs on the destination side."""
        return tokens_in(self.needed.get(place, []))

    @cached_property
    def payload(self) -> set[int]:
        """Every token that some destination rank needs."""
        return set().union(*(tokens_in(stream) for stream in self.needed.values()))

    @cached_property
    def senders(self) -> list[tuple[int, ...]]:
        """The oracle's replica groups of the source."""
        return groups(self.source, self.source.grid.pp - 1)

    @cached_property
    def receivers(self) -> list[tuple[int, ...]]:
        """The oracle's replica groups of the destination."""
        return groups(self.destination, 0)

    @property
    def places(self) -> list[int]:
        """Every process of either side."""
        return sorted({*self.source.places, *self.destination.places})

    @cached_property
    def layouts(self) -> BoundaryLayouts:
        """The layouts under test."""
        boundary = Boundary("under test", self.source, self.destination)
        return boundary.layouts(self.plan, self.microbatch)

    @cached_property
    def routes(self) -> tuple[Route, ...]:
        """The routes under test."""
        return self.layouts.routes()

    @cached_property
    def forward(self) -> Mapping[int, Exchange]:
        """Every process's part forward, under test."""
        return {place: self.layouts.forward(place, self.routes) for place in self.places}

    @cached_property
    def backward(self) -> Mapping[int, Exchange]:
        """Every process's part backward, under test."""
        return {place: self.layouts.backward(place, self.routes) for place in self.places}


@st.composite
def samples(draw: st.DrawFn, key: int) -> SampleSize:
    """Draw a sequence as runs of text and of two encoders' tokens, in any order."""
    kinds = st.sampled_from(["text", ENCODER, ENCODER, OTHER_ENCODER])
    counts = st.sampled_from([1, 0, 2, 3, 5, 9, 12])
    slots: dict[str, list[Slot]] = {}
    position = 0
    for kind, count in draw(st.lists(st.tuples(kinds, counts), min_size=1, max_size=5)):
        if kind != "text":
            slots.setdefault(kind, []).append(Slot(position, count))
        position += count
    length = max(position, 1)
    return SampleSize(key, length, length - 1, {name: tuple(own) for name, own in slots.items()})


@st.composite
def assignments(draw: st.DrawFn, microbatch_of: list[int], dp: int) -> Assignment:
    """Draw which dp rank holds each sample, and in which order; microbatches are given."""
    lanes: list[list[list[int]]] = [[[] for _ in range(dp)] for _ in range(2)]
    for i in draw(st.permutations(range(len(microbatch_of)))):
        lanes[microbatch_of[i]][draw(st.integers(0, dp - 1))].append(i)
    return tuple(tuple(tuple(lane) for lane in microbatch) for microbatch in lanes)


@st.composite
def plans(draw: st.DrawFn, dp_of: Mapping[str, int], microbatch: int) -> StepPlan:
    """Draw a step plan whose ``microbatch``, one of two, is to be tested.

    The language module puts some samples off to the other microbatch: in this one, they are
    tokens that nobody needs.
    """
    drawn = tuple(
        draw(samples(i))
        for i in range(draw(st.sampled_from([1, 0, *range(2, 8)]), label="samples"))
    )
    others = st.sampled_from([microbatch] * 3 + [1 - microbatch])
    encoded_in = [draw(others) for _ in drawn]
    put_off = [draw(st.sampled_from([False] * 7 + [True])) for _ in drawn]
    needed_in = [1 - microbatch if put_off[i] else m for i, m in enumerate(encoded_in)]
    assignment = {
        module: draw(assignments(needed_in if module == LANGUAGE else encoded_in, dp))
        for module, dp in dp_of.items()
    }
    return StepPlan(0, drawn, assignment)


@st.composite
def grids(draw: st.DrawFn, size: int | None = None) -> Grid:
    """Draw tp, cp, dp and pp of 1 to 4, at most 16 ranks, in any order of the axes."""
    pool = draw(st.sampled_from([_ONE_STAGE, _ONE_STAGE, _DEGREES]))
    tp, cp, dp, pp = draw(st.sampled_from([d for d in pool if size in (None, prod(d))]))
    return Grid(tp=tp, cp=cp, dp=dp, pp=pp, order=draw(st.sampled_from(list(permutations(AXES)))))


@st.composite
def sides(draw: st.DrawFn, module: str, grid: Grid, first: int = 0) -> Side:
    """Draw a side on the processes from ``first`` on, in any order; encoders are packed."""
    places = tuple(draw(st.permutations(range(first, first + grid.size)), label="places"))
    return Side(
        module,
        grid,
        places,
        sequence_parallel=draw(st.sampled_from([False, True, True]), label="sequence parallel"),
        packed=module != LANGUAGE or draw(st.booleans(), label="packed"),
        equal_lanes=draw(st.booleans(), label="equal lanes"),
        extra_tokens=0 if module == LANGUAGE else draw(st.sampled_from([0, 0, 1, 2])),
    )


@st.composite
def boundary_cases(draw: st.DrawFn, shared: Shared = "any") -> BoundaryCase:
    """Draw a boundary whose sides share none, all or any of their processes."""
    grid = draw(grids(), label="source")
    language_grid = draw(grids(grid.size if shared == "all" else None), label="destination")
    first = {"none": grid.size, "all": 0}.get(shared)
    if first is None:
        first = draw(st.integers(0, grid.size), label="first destination place")
    microbatch = draw(st.integers(0, 1))
    plan = draw(plans({ENCODER: grid.dp, LANGUAGE: language_grid.dp}, microbatch), label="plan")
    return BoundaryCase(
        plan,
        draw(sides(ENCODER, grid)),
        draw(sides(LANGUAGE, language_grid, first)),
        microbatch,
    )


@st.composite
def two_encoders(draw: st.DrawFn) -> tuple[BoundaryCase, BoundaryCase]:
    """Draw two encoders' boundaries with one language module and interleaved sequences."""
    encoders = {name: draw(grids(), label=name) for name in (ENCODER, OTHER_ENCODER)}
    language_grid = draw(grids(), label="destination")
    dp_of = {name: grid.dp for name, grid in encoders.items()} | {LANGUAGE: language_grid.dp}
    plan = draw(plans(dp_of, 0), label="plan")
    language = draw(sides(LANGUAGE, language_grid))
    one, other = (
        BoundaryCase(plan, draw(sides(name, grid)), language, 0) for name, grid in encoders.items()
    )
    return one, other


def case_in_order(
    sizes: list[int],
    source: Grid,
    destination: Grid,
    first_source: int = 0,
    first_destination: int = 0,
    num_microbatches: int = 1,
) -> BoundaryCase:
    """Return the first microbatch of a boundary whose samples go to dp ranks in sampler order.

    A sample is a text token, an image of as many tokens as ``sizes`` says, a text token.
    """
    samples = tuple(
        SampleSize(i, size + 2, 1, {ENCODER: (Slot(1, size),)} if size else {})
        for i, size in enumerate(sizes)
    )
    assignment = {
        module: in_order(len(sizes), num_microbatches, grid.dp)
        for module, grid in ((ENCODER, source), (LANGUAGE, destination))
    }
    source_places = tuple(range(first_source, first_source + source.size))
    places = tuple(range(first_destination, first_destination + destination.size))
    return BoundaryCase(
        StepPlan(0, samples, assignment),
        Side(ENCODER, source, source_places),
        Side(LANGUAGE, destination, places),
        microbatch=0,
    )
