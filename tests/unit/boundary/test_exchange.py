"""Exchanges of all processes together, against the oracle's buffers."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given

from disagg_train.boundary import exchange as product
from disagg_train.boundary.exchange import BoundaryLayouts, Exchange, Rows
from disagg_train.planner.step_plan import SampleSize, Slot, StepPlan
from disagg_train.topology.layout import Holding, Layout, Span
from tests.unit.boundary.player import PADDING, ZERO, Exchanges, play
from tests.unit.boundary.strategies import ENCODER, LANGUAGE, BoundaryCase, boundary_cases

Messages = tuple[tuple[int, Rows], ...]


@pytest.fixture(scope="module", autouse=True, params=["packed", "cut"])
def messages(request: pytest.FixtureRequest) -> Iterator[str]:
    """Whether a peer gets one message, or one for every run of neighbouring rows."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cut":
            patch.setattr(product, "_LONG_RUN", 1)
        yield request.param


def both_ways(case: BoundaryCase) -> tuple[Exchanges, Exchanges]:
    return case.forward, case.backward


def rows_in(messages: Messages) -> int:
    return sum(len(rows) for _, rows in messages)


def written(exchange: Exchange) -> list[int]:
    """Return the rows that a process fills, once for each time that it does."""
    incoming = exchange.receives + exchange.handed
    return [row for _, rows in incoming for row in rows] + list(exchange.local[1])


@given(boundary_cases())
def test_every_destination_rank_ends_with_exactly_its_tokens_in_ascending_order(
    case: BoundaryCase,
) -> None:
    sending = {
        place: [PADDING if token is None else token for token in stream]
        for place, stream in case.held.items()
    }
    arrived = play(case.forward, sending)
    assert arrived == {place: sorted(case.needed_by(place)) for place in case.places}


@given(boundary_cases())
def test_every_source_rank_ends_with_its_tokens_gradients_and_zero_elsewhere(
    case: BoundaryCase,
) -> None:
    sending = {place: sorted(case.needed_by(place)) for place in case.needed}
    arrived = play(case.backward, sending)
    assert arrived == {
        place: [t if t in case.payload else ZERO for t in case.held.get(place, [])]
        for place in case.places
    }


@given(boundary_cases())
def test_received_local_and_handed_rows_fill_each_row_of_a_token_once(case: BoundaryCase) -> None:
    for place in case.places:
        there, back = written(case.forward[place]), written(case.backward[place])
        assert sorted(there) == list(range(case.forward[place].num_rows))
        assert case.forward[place].num_filled == len(there)
        assert case.backward[place].num_filled == len(back)
        stream = case.held.get(place, [])
        assert sorted(back) == [row for row, token in enumerate(stream) if token in case.payload]


@given(boundary_cases())
def test_a_process_copies_what_it_holds_itself_and_takes_only_the_rest(case: BoundaryCase) -> None:
    for place in case.places:
        held, needed = case.held_by(place), case.needed_by(place)
        there, back = case.forward[place], case.backward[place]
        assert len(there.local[1]) == len(back.local[1]) == len(held & needed)
        assert rows_in(there.receives + there.handed) == len(needed - held)
        assert rows_in(back.receives + back.handed) == len((held & case.payload) - needed)


@given(boundary_cases())
def test_backward_messages_are_the_transpose_of_forward_messages(case: BoundaryCase) -> None:
    for place in case.places:
        there, back = case.forward[place], case.backward[place]
        assert back.sends == there.receives
        assert back.receives == there.sends
        assert copies(back.local) == {(write, read) for read, write in copies(there.local)}


def copies(local: tuple[Rows, Rows]) -> set[tuple[int, int]]:
    return set(zip(*local, strict=True))


@given(boundary_cases())
def test_no_process_sends_a_message_to_itself_or_an_empty_one(case: BoundaryCase) -> None:
    for exchanges in both_ways(case):
        for place, e in exchanges.items():
            for peer, rows in e.sends + e.receives + e.hands_on + e.handed:
                assert peer != place
                assert rows


@given(case=boundary_cases())
def test_a_peer_gets_one_message_unless_long_runs_need_no_copy(
    case: BoundaryCase, messages: str
) -> None:
    for exchanges in both_ways(case):
        for e in exchanges.values():
            for kind in (e.sends, e.receives, e.hands_on, e.handed):
                if messages == "packed":
                    assert len(dict(kind)) == len(kind)
                else:
                    assert all(rows == tuple(range(rows[0], rows[-1] + 1)) for _, rows in kind)


@pytest.mark.parametrize("run", [2, 256])
def test_both_ends_cut_a_message_at_the_end_of_a_long_run(run: int, messages: str) -> None:
    held = Holding((Span(0, run, 0), Span(run, 3 * run, 2 * run)))
    source = Layout((0,), (held,), ((0,),))
    destination = Layout((1,), (Holding((Span(0, 3 * run, 0),)),), ((0,),))
    layouts = BoundaryLayouts(source, destination, (4 * run,))
    routes = layouts.routes()
    sent, received = layouts.forward(0, routes).sends, layouts.forward(1, routes).receives
    expected = [3 * run] if (run, messages) == (2, "packed") else [run, 2 * run]
    assert [len(rows) for _, rows in sent] == [len(rows) for _, rows in received] == expected


@given(boundary_cases())
def test_rows_are_handed_on_between_replicas_only(case: BoundaryCase) -> None:
    for exchanges, groups in ((case.forward, case.receivers), (case.backward, case.senders)):
        for place, exchange in exchanges.items():
            replicas = next((group for group in groups if place in group), ())
            assert {peer for peer, _ in exchange.hands_on + exchange.handed} <= set(replicas)


@given(boundary_cases(shared="none"))
def test_between_disjoint_sides_the_wire_carries_the_payload_once_each_way(
    case: BoundaryCase,
) -> None:
    for exchanges in both_ways(case):
        assert sum(e.num_sent for e in exchanges.values()) == len(case.payload)
        assert sum(e.num_received for e in exchanges.values()) == len(case.payload)
        assert all(e.local == ((), ()) for e in exchanges.values())


@given(boundary_cases())
def test_the_wire_carries_each_token_once_unless_its_two_groups_share_a_process(
    case: BoundaryCase,
) -> None:
    crossing = 0
    for receivers in case.receivers:
        for senders in case.senders:
            if not set(senders) & set(receivers):
                crossing += len(case.held_by(senders[0]) & case.needed_by(receivers[0]))
    for exchanges in both_ways(case):
        assert sum(e.num_sent for e in exchanges.values()) == crossing
        assert sum(e.num_received for e in exchanges.values()) == crossing


@given(boundary_cases())
def test_replicas_share_what_they_send_and_what_they_receive_within_one_token(
    case: BoundaryCase,
) -> None:
    for exchanges, sending, receiving in (
        (case.forward, case.senders, case.receivers),
        (case.backward, case.receivers, case.senders),
    ):
        for group in sending:
            assert differ_by_at_most_one(exchanges[place].num_sent for place in group)
        for group in receiving:
            assert differ_by_at_most_one(exchanges[place].num_received for place in group)


def differ_by_at_most_one(loads: Iterable[int]) -> bool:
    counts = list(loads)
    return max(counts) - min(counts) <= 1


@given(boundary_cases(shared="all"))
def test_a_colocated_boundary_of_equal_layouts_moves_nothing_between_processes(
    case: BoundaryCase,
) -> None:
    for exchanges in both_ways(images_only(case)):
        for e in exchanges.values():
            assert not (e.sends or e.receives or e.hands_on or e.handed)


def images_only(case: BoundaryCase) -> BoundaryCase:
    """Return a boundary onto the source's own ranks, of sequences that are one image each."""
    counts = [sample.tokens(ENCODER) for sample in case.plan.samples]
    sizes = tuple(SampleSize(i, n, 0, {ENCODER: (Slot(0, n),)}) for i, n in enumerate(counts))
    lanes = case.plan.assignment[ENCODER]
    grid = replace(case.source.grid, pp=1)
    places = case.source.places[: grid.size]
    source = replace(case.source, grid=grid, places=places, extra_tokens=0)
    plan = StepPlan(0, sizes, {ENCODER: lanes, LANGUAGE: lanes})
    return BoundaryCase(plan, source, replace(source, module=LANGUAGE), case.microbatch)


@given(boundary_cases())
def test_a_process_that_neither_sends_nor_needs_a_token_has_nothing_to_do(
    case: BoundaryCase,
) -> None:
    senders = {route.source for route in case.routes if not route.is_local}
    for place, exchange in case.forward.items():
        if place not in senders and not case.needed_by(place):
            assert replace(exchange, num_rows=0) == Exchange()
