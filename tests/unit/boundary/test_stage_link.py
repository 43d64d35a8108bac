"""A stage link: every rank sends all its rows to the rank that is alike on the next stage."""

from dataclasses import dataclass
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.boundary.exchange import Exchange
from disagg_train.boundary.layouts import Side
from disagg_train.boundary.step_exchanges import StageLink, edge_places
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.grid import AXES, Grid
from tests.unit.boundary.oracle import destination_buffers, source_buffers
from tests.unit.boundary.strategies import ENCODER, LANGUAGE, plans, sides


@dataclass(frozen=True)
class LinkCase:
    """A link of a module's pipeline, and a step over it."""

    plan: StepPlan
    link: StageLink

    def at(self, place: int) -> dict[str, int]:
        """Return a place's coordinates, its stage apart."""
        side = self.link.module
        coordinates = dict(side.grid.coordinates(side.places.index(place)))
        del coordinates["pp"]
        return coordinates

    def num_rows(self, microbatch: int, place: int) -> int:
        """Return the rows of a place, by the oracle, which knows one stage of each module."""
        side = self.link.module
        if self.link.merge is None:
            buffers = destination_buffers(self.plan, ENCODER, side, microbatch)
        else:
            buffers = source_buffers(self.plan, side, microbatch)
        (stream,) = (rows for p, rows in buffers.items() if self.at(p) == self.at(place))
        return len(stream) * (self.link.merge or 1)


@st.composite
def link_cases(draw: st.DrawFn) -> LinkCase:
    """Draw a module of 2 to 4 stages, one of its links, and a step with empty lanes."""
    degrees = st.tuples(*(st.integers(1, 2) for _ in range(3)), st.integers(2, 4))
    tp, cp, dp, pp = draw(degrees)
    order = draw(st.sampled_from(list(permutations(AXES))))
    module = draw(st.sampled_from([ENCODER, LANGUAGE]))
    merge = draw(st.sampled_from([1, 2, 4])) if module == ENCODER else None
    grid = Grid(tp=tp, cp=cp, dp=dp, pp=pp, order=order)
    side = draw(sides(module, grid, first=draw(st.integers(0, 3))))
    plan = draw(plans({module: dp}, microbatch=0))
    return LinkCase(plan, StageLink(side, draw(st.integers(0, pp - 2)), merge))


@given(link_cases())
def test_peers_are_alike_on_every_axis_but_their_stage(case: LinkCase) -> None:
    link = case.link
    for place in edge_places(link):
        for step in link.exchanges(case.plan, place):
            for peer, _ in step.forward.sends + step.forward.receives:
                assert case.at(peer) == case.at(place)
                there = (
                    link.destination_places if place in link.source_places else link.source_places
                )
                assert peer in there


@given(link_cases())
def test_every_rank_moves_all_rows_of_its_lane_to_or_from_one_peer(case: LinkCase) -> None:
    for place in edge_places(case.link):
        for microbatch, step in enumerate(case.link.exchanges(case.plan, place)):
            rows = tuple(range(case.num_rows(microbatch, place)))
            sends = place in case.link.source_places
            full, other = step.forward.sends, step.forward.receives
            if not sends:
                full, other = other, full
            assert [moved for _, moved in full] == ([rows] if rows else [])
            assert other == ()
            assert step.forward.num_rows == (0 if sends else len(rows))


@given(link_cases())
def test_backward_is_forward_the_other_way_round(case: LinkCase) -> None:
    for place in edge_places(case.link):
        for step in case.link.exchanges(case.plan, place):
            forward, backward = step.forward, step.backward
            assert (backward.sends, backward.receives) == (forward.receives, forward.sends)
            assert backward.num_filled == backward.num_rows == forward.num_sent


@given(link_cases())
def test_what_one_end_sends_the_other_end_receives(case: LinkCase) -> None:
    parts = {place: case.link.exchanges(case.plan, place) for place in edge_places(case.link)}
    for microbatch in range(case.plan.num_microbatches):
        for place, steps in parts.items():
            for peer, rows in steps[microbatch].forward.sends:
                assert parts[peer][microbatch].forward.receives == ((place, rows),)
            for peer, rows in steps[microbatch].backward.sends:
                assert parts[peer][microbatch].backward.receives == ((place, rows),)


@given(link_cases())
def test_every_row_arrives_so_no_buffer_needs_zeros(case: LinkCase) -> None:
    for place in case.link.destination_places:
        for step in case.link.exchanges(case.plan, place):
            assert step.forward.num_filled == step.forward.num_rows


def link_over(tokens: list[int], lanes: list[list[int]], merge: int | None) -> tuple[Exchange, ...]:
    """Return the forward part of each rank of a dp2 pp2 module on places 4 to 7."""
    module = LANGUAGE if merge is None else ENCODER
    samples = tuple(
        SampleSize(i, n + 2, 1, {ENCODER: (Slot(1, n),)} if n else {}) for i, n in enumerate(tokens)
    )
    plan = StepPlan(0, samples, {module: (tuple(tuple(lane) for lane in lanes),)})
    link = StageLink(Side(module, Grid(dp=2, pp=2), (4, 5, 6, 7)), 0, merge)
    return tuple(link.exchanges(plan, place)[0].forward for place in (4, 5, 6, 7))


def test_an_encoders_rows_are_patches_and_a_lane_without_images_is_empty() -> None:
    first, second, third, fourth = link_over([3, 0], [[0], [1]], merge=2)
    assert first.sends == ((6, (0, 1, 2, 3, 4, 5)),)
    assert third.receives == ((4, (0, 1, 2, 3, 4, 5)),)
    assert second == fourth == Exchange()


def test_the_llms_rows_are_whole_sequences_and_a_lane_without_samples_is_empty() -> None:
    first, second, third, fourth = link_over([3, 0], [[], [1, 0]], merge=None)
    assert first == third == Exchange()
    assert second.sends == ((7, tuple(range(7))),)
    assert fourth.num_rows == 7


def test_a_link_has_its_stages_names_and_no_replicas() -> None:
    side = Side(ENCODER, Grid(tp=2, pp=3), (0, 1, 2, 3, 4, 5))
    link = StageLink(side, 1, merge=2)
    assert link.name == "vision.1->vision.2"
    assert (link.source_places, link.destination_places) == ((2, 3), (4, 5))
    assert [link.replicas_of(place, g) for place in (2, 3, 4, 5) for g in (False, True)] == [()] * 8
