"""Exchanges of all processes together, played with numpy buffers.

A row's value is its token id plus one going forward and plus two going back, so that zero
means no token. Padding and text rows of a sender are NaN: whoever reads one spreads it.
"""

from collections.abc import Mapping

import numpy as np
from hypothesis import given

from disagg_train.boundary.exchange import Exchange, Gather
from tests.unit.boundary.oracle import Stream, groups, tokens_in
from tests.unit.boundary.strategies import BoundaryCase, boundary_cases

Exchanges = Mapping[int, Exchange]
Arrays = dict[int, np.ndarray]


def forward_exchanges(case: BoundaryCase) -> Exchanges:
    routes = case.layouts.routes()
    return {place: case.layouts.forward(place, routes) for place in case.places}


def backward_exchanges(case: BoundaryCase) -> Exchanges:
    routes = case.layouts.routes()
    return {place: case.layouts.backward(place, routes) for place in case.places}


def play(exchanges: Exchanges, sending: Arrays) -> Arrays:
    """Carry out every process's part and return the filled buffers."""
    posted = {
        (place, peer): sending[place][list(rows)]
        for place, exchange in exchanges.items()
        for peer, rows in exchange.sends
    }
    filled = {place: _receive(place, e, sending, posted) for place, e in exchanges.items()}
    assert not posted, f"messages that nobody received: {sorted(posted)}"
    return {place: _gathered(place, e.gather, filled) for place, e in exchanges.items()}


def _receive(
    place: int, exchange: Exchange, sending: Arrays, posted: dict[tuple[int, int], np.ndarray]
) -> np.ndarray:
    buffer = np.zeros(exchange.num_rows)
    for peer, rows in exchange.receives:
        message = posted.pop((peer, place))
        assert len(message) == len(rows)
        buffer[list(rows)] = message
    read, write = exchange.local
    if read:
        buffer[list(write)] = sending[place][list(read)]
    return buffer


def _gathered(place: int, gather: Gather | None, filled: Arrays) -> np.ndarray:
    complete = filled[place].copy()
    if gather is not None:
        for replica, rows in zip(gather.places, gather.shares, strict=True):
            complete[list(rows)] = filled[replica][list(rows)]
    return complete


def values(stream: Stream, plus: int) -> np.ndarray:
    return np.array([np.nan if token is None else token + plus for token in stream])


@given(boundary_cases())
def test_every_destination_rank_ends_with_exactly_its_tokens_in_ascending_order(
    case: BoundaryCase,
) -> None:
    sending = {place: values(stream, 1) for place, stream in case.held.items()}
    arrived = play(forward_exchanges(case), sending)
    for place in case.places:
        expected = sorted(tokens_in(case.needed.get(place, [])))
        np.testing.assert_array_equal(arrived[place], np.array(expected) + 1.0)


@given(boundary_cases())
def test_every_source_rank_ends_with_its_tokens_gradients_and_zero_elsewhere(
    case: BoundaryCase,
) -> None:
    sending = {
        place: np.array(sorted(tokens_in(stream))) + 2.0 for place, stream in case.needed.items()
    }
    needed = set().union(*(tokens_in(stream) for stream in case.needed.values()))
    arrived = play(backward_exchanges(case), sending)
    for place in case.places:
        expected = [token + 2.0 if token in needed else 0.0 for token in case.held.get(place, [])]
        np.testing.assert_array_equal(arrived[place], np.array(expected))


@given(boundary_cases())
def test_backward_messages_are_the_transpose_of_forward_messages(case: BoundaryCase) -> None:
    there, back = forward_exchanges(case), backward_exchanges(case)
    for place in case.places:
        assert lengths(back[place].sends) == lengths(there[place].receives)
        assert lengths(back[place].receives) == lengths(there[place].sends)


def lengths(messages: tuple[tuple[int, tuple[int, ...]], ...]) -> dict[int, int]:
    assert len(dict(messages)) == len(messages), "more than one message for a peer"
    return {peer: len(rows) for peer, rows in messages}


@given(boundary_cases())
def test_no_process_sends_a_message_to_itself_or_an_empty_one(case: BoundaryCase) -> None:
    for exchanges in (forward_exchanges(case), backward_exchanges(case)):
        for place, exchange in exchanges.items():
            for peer, rows in exchange.sends + exchange.receives:
                assert peer != place
                assert rows


@given(boundary_cases(disjoint=True))
def test_between_disjoint_sides_the_wire_carries_the_payload_once_each_way(
    case: BoundaryCase,
) -> None:
    payload = len(set().union(*(tokens_in(stream) for stream in case.needed.values())))
    for exchanges in (forward_exchanges(case), backward_exchanges(case)):
        assert sum(exchange.num_sent for exchange in exchanges.values()) == payload
        assert sum(exchange.num_received for exchange in exchanges.values()) == payload
        assert all(exchange.local == ((), ()) for exchange in exchanges.values())


@given(boundary_cases())
def test_replicas_agree_on_their_gather(case: BoundaryCase) -> None:
    for exchanges, receiving in (
        (forward_exchanges(case), groups(case.destination, 0)),
        (backward_exchanges(case), groups(case.source, case.source.grid.pp - 1)),
    ):
        for group in receiving:
            parts = [exchanges[place].gather for place in group]
            assert all(part == parts[0] for part in parts)
            assert (parts[0] is None) == (len(group) == 1)


@given(boundary_cases())
def test_an_exchange_is_empty_iff_neither_the_process_nor_its_replicas_take_part(
    case: BoundaryCase,
) -> None:
    routes = case.layouts.routes()
    busy = {route.source for route in routes} | {route.destination for route in routes}
    for place, exchange in forward_exchanges(case).items():
        replicas = next((g for g in groups(case.destination, 0) if place in g), (place,))
        gathers = any(route.destination in replicas for route in routes)
        assert exchange.is_empty == (place not in busy and not gathers)


def test_a_process_outside_the_boundary_has_nothing_to_do() -> None:
    assert Exchange().is_empty
    assert Exchange(num_rows=3).is_empty
    assert not Exchange(gather=Gather((0, 1), ((), (4,)))).is_empty
