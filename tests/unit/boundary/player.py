"""Carries out the exchanges of all processes in plain lists."""

from collections.abc import Mapping

from disagg_train.boundary.exchange import Exchange

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
    wire = {
        (place, peer): _read(sending[place], rows)
        for place, exchange in exchanges.items()
        for peer, rows in exchange.sends
    }
    filled: Buffers = {place: [ZERO] * e.num_rows for place, e in exchanges.items()}
    for place, exchange in exchanges.items():
        for peer, rows in exchange.receives:
            _write(filled[place], rows, wire.pop((peer, place)))
        reads, writes = exchange.local
        if reads or writes:
            _write(filled[place], writes, _read(sending[place], reads))
    assert not wire, f"messages that nobody received: {sorted(wire)}"
    _hand_on(exchanges, filled)
    return filled


def _hand_on(exchanges: Exchanges, filled: Buffers) -> None:
    between = {
        (place, peer): _read(filled[place], rows)
        for place, exchange in exchanges.items()
        for peer, rows in exchange.hands_on
    }
    for place, exchange in exchanges.items():
        for peer, rows in exchange.handed:
            _write(filled[place], rows, between.pop((peer, place)))
    assert not between, f"rows that nobody was handed: {sorted(between)}"


def _read(buffer: list[Value], rows: tuple[int, ...]) -> list[Value]:
    message = [buffer[row] for row in rows]
    assert PADDING not in message and ZERO not in message, "a row without a token was read"
    return message


def _write(buffer: list[Value], rows: tuple[int, ...], message: list[Value]) -> None:
    assert len(rows) == len(message)
    for row, value in zip(rows, message, strict=True):
        assert buffer[row] is ZERO, f"row {row} is written twice"
        buffer[row] = value
