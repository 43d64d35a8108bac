"""Carries out the exchanges of all processes in plain lists."""

from collections import defaultdict, deque
from collections.abc import Mapping

from disagg_train.boundary.exchange import Exchange, Message

Value = int | float | str | None
Exchanges = Mapping[int, Exchange]
Buffers = dict[int, list[Value]]

ZERO = None
"""A row that nothing was written to."""

PADDING = "padding"
"""A sender's row without a token: nobody may read it."""


def play(exchanges: Exchanges, sending: Mapping[int, list[Value]]) -> Buffers:
    """Carry out every process's part and return the filled buffers.

    First all sends, receives and local copies; then replicas hand on what they have by now.
    """
    wire = {place: (sending.get(place, []), e.sends) for place, e in exchanges.items()}
    messages = _under_way(wire)
    filled: Buffers = {place: [ZERO] * e.num_rows for place, e in exchanges.items()}
    for place, exchange in exchanges.items():
        for peer, rows in exchange.receives:
            _write(filled[place], rows, messages[peer, place].popleft())
        reads, writes = exchange.local
        if reads or writes:
            _write(filled[place], writes, _read(sending[place], reads))
    assert not any(messages.values()), f"messages that nobody received: {messages}"
    _hand_on(exchanges, filled)
    return filled


def _hand_on(exchanges: Exchanges, filled: Buffers) -> None:
    messages = _under_way({place: (filled[place], e.hands_on) for place, e in exchanges.items()})
    for place, exchange in exchanges.items():
        for peer, rows in exchange.handed:
            _write(filled[place], rows, messages[peer, place].popleft())
    assert not any(messages.values()), f"rows that nobody was handed: {messages}"


def _under_way(
    sent: Mapping[int, tuple[list[Value], tuple[Message, ...]]],
) -> defaultdict[tuple[int, int], deque[list[Value]]]:
    """Return the messages between each two processes, in the order in which they were sent."""
    messages: defaultdict[tuple[int, int], deque[list[Value]]] = defaultdict(deque)
    for place, (buffer, outgoing) in sent.items():
        for peer, rows in outgoing:
            messages[place, peer].append(_read(buffer, rows))
    return messages


def _read(buffer: list[Value], rows: tuple[int, ...]) -> list[Value]:
    message = [buffer[row] for row in rows]
    assert PADDING not in message and ZERO not in message, "a row without a token was read"
    return message


def _write(buffer: list[Value], rows: tuple[int, ...], message: list[Value]) -> None:
    assert len(rows) == len(message)
    for row, value in zip(rows, message, strict=True):
        assert buffer[row] is ZERO, f"row {row} is written twice"
        buffer[row] = value
