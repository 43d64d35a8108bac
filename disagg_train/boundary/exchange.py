"""One rank's part in one exchange: which rows of its buffer go where. Pure.

An exchange moves one microbatch's tokens over a boundary in one direction. Its sending
side reads rows of a buffer, its receiving side writes rows of another one; replicas of the
receiving side then hand on to each other what each of them received. A process on both
sides copies what it holds already: nobody sends that, or hands it on, to it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise, starmap

from disagg_train.boundary.routes import (
    Interval,
    Route,
    common,
    intersect,
    row_runs,
    rows_of,
    without,
)
from disagg_train.topology.layout import Holding, Layout

Rows = tuple[int, ...]
Message = tuple[int, Rows]
"""A peer, and the rows to read for it or to write from it."""

_LONG_RUN = 256


@dataclass(frozen=True)
class Exchange:
    """What one process does for one microbatch and direction.

    Args:
        sends: rows of the buffer to read. A peer gets one packed message, or one per run of
            rows where runs are long; its ``receives`` are cut alike.
        receives: rows of the buffer to fill, likewise.
        local: (rows to read, rows to write) of tokens that this process holds already.
        num_rows: rows of the buffer to fill; rows that nobody sends stay zero.
        hands_on: rows of the filled buffer for the other replicas, after ``receives``.
        handed: rows of it that the other replicas hand on to this one.
    """

    sends: tuple[Message, ...] = ()
    receives: tuple[Message, ...] = ()
    local: tuple[Rows, Rows] = ((), ())
    num_rows: int = 0
    hands_on: tuple[Message, ...] = ()
    handed: tuple[Message, ...] = ()

    @property
    def num_sent(self) -> int:
        """Tokens that leave this process."""
        return sum(len(rows) for _, rows in self.sends)

    @property
    def num_received(self) -> int:
        """Tokens that reach this process from others."""
        return sum(len(rows) for _, rows in self.receives)

    @property
    def num_filled(self) -> int:
        """Rows of the buffer that something arrives in."""
        handed = sum(len(rows) for _, rows in self.handed)
        return self.num_received + len(self.local[1]) + handed


@dataclass(frozen=True)
class BoundaryLayouts:
    """Both layouts of a boundary for one microbatch, and the routes between them.

    Args:
        source: tokens at rows of the encoder's output.
        destination: tokens at rows of the LLM's stream.
        source_rows: rows of each source rank's output, padding included.
    """

    source: Layout
    destination: Layout
    source_rows: tuple[int, ...]

    def routes(self) -> tuple[Route, ...]:
        """Return the forward routes."""
        return intersect(self.source, self.destination)

    @cached_property
    def compact(self) -> Layout:
        """The destination over compact buffers: row i is a rank's i-th token, ascending."""
        holdings = tuple(holding.compact() for holding in self.destination.holdings)
        return Layout(self.destination.places, holdings, self.destination.replicas)

    def forward(self, place: int, routes: Sequence[Route]) -> Exchange:
        """Return the part of process ``place`` in carrying activations to the LLM."""
        is_there = place in self.destination.places
        num_rows = _holding(self.destination, place).num_tokens if is_there else 0
        return _exchange(place, routes, self.source, self.compact, num_rows)

    def backward(self, place: int, routes: Sequence[Route]) -> Exchange:
        """Return the part of process ``place`` in carrying gradients to the encoder."""
        transposed = [route.reversed() for route in routes]
        return _exchange(place, transposed, self.compact, self.source, self._num_source_rows(place))

    def both(self, place: int, routes: Sequence[Route]) -> tuple[Exchange, Exchange]:
        """Return the parts of process ``place`` forward and backward.

        Backward carries the same messages the other way; only what replicas hand on differs.
        """
        forward = self.forward(place, routes)
        if place not in self.source.places:
            return forward, Exchange(sends=forward.receives)
        transposed = [route.reversed() for route in routes]
        hands_on, handed = _hand_ons(self.compact, self.source, place, transposed)
        return forward, Exchange(
            sends=forward.receives,
            receives=forward.sends,
            local=forward.local[::-1],
            num_rows=self._num_source_rows(place),
            hands_on=hands_on,
            handed=handed,
        )

    def _num_source_rows(self, place: int) -> int:
        places = self.source.places
        return self.source_rows[places.index(place)] if place in places else 0


def _exchange(
    place: int,
    routes: Sequence[Route],
    source: Layout,
    destination: Layout,
    num_rows: int,
) -> Exchange:
    outgoing: dict[int, list[Interval]] = defaultdict(list)
    incoming: dict[int, list[Interval]] = defaultdict(list)
    for route in sorted(routes, key=lambda r: r.start):
        if route.is_local:
            continue
        if route.source == place:
            outgoing[route.destination].append((route.start, route.stop))
        if route.destination == place:
            incoming[route.source].append((route.start, route.stop))
    sends = _messages(source, destination, place, outgoing)
    if place not in destination.places:
        return Exchange(sends=sends)
    hands_on, handed = _hand_ons(source, destination, place, routes)
    return Exchange(
        sends=sends,
        receives=_messages(destination, source, place, incoming),
        local=_local(source, destination, place),
        num_rows=num_rows,
        hands_on=hands_on,
        handed=handed,
    )


def _messages(
    mine: Layout, theirs: Layout, place: int, tokens: Mapping[int, list[Interval]]
) -> tuple[Message, ...]:
    """Return the rows of each peer's tokens in ``mine``, cut into messages, by peer."""
    messages: list[Message] = []
    for peer in sorted(tokens):
        runs = row_runs(_holding(mine, place), tokens[peer])
        rows = tuple(chain.from_iterable(starmap(range, runs)))
        cuts = _breaks(runs) | _breaks(row_runs(_holding(theirs, peer), tokens[peer]))
        if (len(cuts) + 1) * _LONG_RUN > len(rows):
            cuts = set()
        ends = pairwise([0, *sorted(cuts), len(rows)])
        messages += [(peer, rows[first:stop]) for first, stop in ends]
    return tuple(messages)


def _breaks(runs: Iterable[Interval]) -> set[int]:
    """Return where in a message of runs of rows the next row is no neighbour of the last."""
    found, position, following = set(), 0, None
    for first, stop in runs:
        if first != following and position:
            found.add(position)
        position, following = position + stop - first, stop
    return found


def _local(source: Layout, destination: Layout, place: int) -> tuple[Rows, Rows]:
    """Return (rows to read, rows to write) of the tokens that ``place`` has on both sides."""
    if place not in source.places:
        return (), ()
    held, needed = _holding(source, place), _holding(destination, place)
    shared = common(held.intervals, needed.intervals)
    return tuple(rows_of(held, shared)), tuple(rows_of(needed, shared))


def _hand_ons(
    source: Layout, destination: Layout, place: int, routes: Sequence[Route]
) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Return what ``place`` hands on to each other replica, and what each hands on to it."""
    index = destination.places.index(place)
    group = next(ranks for ranks in destination.replicas if index in ranks)
    replicas = [destination.places[rank] for rank in group]
    if len(replicas) == 1:
        return (), ()
    arrived: dict[int, list[Interval]] = {replica: [] for replica in replicas}
    for route in routes:
        if route.destination in arrived:
            arrived[route.destination].append((route.start, route.stop))
    held = {p: _holding(source, p).intervals if p in source.places else [] for p in replicas}
    hands_on: dict[int, list[Interval]] = {}
    handed: dict[int, list[Interval]] = {}
    for other in replicas:
        if other == place:
            continue
        if given := without(sorted(arrived[place]), held[other]):
            hands_on[other] = given
        if taken := without(sorted(arrived[other]), held[place]):
            handed[other] = taken
    return (
        _messages(destination, destination, place, hands_on),
        _messages(destination, destination, place, handed),
    )


def _holding(layout: Layout, place: int) -> Holding:
    return layout.holdings[layout.places.index(place)]
