"""One rank's part in one exchange: which rows of its buffer go where. Pure.

An exchange moves one microbatch's tokens over a boundary in one direction. Its sending
side reads rows of a buffer, its receiving side writes rows of another one; replicas of the
receiving side then gather from each other what each of them received.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from disagg_train.boundary.routes import Interval, Route, intersect, rows_of
from disagg_train.topology.layout import Layout

Rows = tuple[int, ...]


@dataclass(frozen=True)
class Gather:
    """How the replicas of a receiving group complete each other's rows.

    Args:
        places: global ranks of the replicas.
        shares: per replica, the rows that it received, in ascending token id.
    """

    places: tuple[int, ...]
    shares: tuple[Rows, ...]


@dataclass(frozen=True)
class Exchange:
    """What one process does for one microbatch and direction.

    Args:
        sends: (peer, rows to read), one packed message per peer.
        receives: (peer, rows to write), one packed message per peer.
        local: (rows to read, rows to write) of tokens that stay in this process.
        num_rows: rows of the buffer to fill; rows that nobody sends stay zero.
        gather: how to complete the rows over replicas, None where there are none.
    """

    sends: tuple[tuple[int, Rows], ...] = ()
    receives: tuple[tuple[int, Rows], ...] = ()
    local: tuple[Rows, Rows] = ((), ())
    num_rows: int = 0
    gather: Gather | None = None

    @property
    def num_sent(self) -> int:
        """Tokens that leave this process."""
        return sum(len(rows) for _, rows in self.sends)

    @property
    def num_received(self) -> int:
        """Tokens that reach this process from others."""
        return sum(len(rows) for _, rows in self.receives)

    @property
    def is_empty(self) -> bool:
        """Whether this process has nothing to read, write or gather."""
        gathers = self.gather is not None and any(self.gather.shares)
        return not (self.sends or self.receives or self.local[0] or gathers)


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
        num_rows = tuple(holding.num_tokens for holding in self.compact.holdings)
        return _exchange(place, routes, self.source, self.compact, num_rows)

    def backward(self, place: int, routes: Sequence[Route]) -> Exchange:
        """Return the part of process ``place`` in carrying gradients to the encoder."""
        transposed = [route.reversed() for route in routes]
        return _exchange(place, transposed, self.compact, self.source, self.source_rows)


def _exchange(
    place: int,
    routes: Sequence[Route],
    source: Layout,
    destination: Layout,
    num_rows: tuple[int, ...],
) -> Exchange:
    outgoing: dict[int, list[Interval]] = defaultdict(list)
    incoming: dict[int, list[Interval]] = defaultdict(list)
    for route in sorted(routes, key=lambda r: r.start):
        if route.source == place:
            outgoing[route.destination].append((route.start, route.stop))
        if route.destination == place:
            incoming[route.source].append((route.start, route.stop))
    reads = _rows_by_peer(source, place, outgoing)
    writes = _rows_by_peer(destination, place, incoming)
    receives_here = place in destination.places
    index = destination.places.index(place) if receives_here else 0
    return Exchange(
        sends=tuple((peer, rows) for peer, rows in reads.items() if peer != place),
        receives=tuple((peer, rows) for peer, rows in writes.items() if peer != place),
        local=(reads.get(place, ()), writes.get(place, ())),
        num_rows=num_rows[index] if receives_here else 0,
        gather=_gather(destination, index, routes) if receives_here else None,
    )


def _rows_by_peer(layout: Layout, place: int, tokens: dict[int, list[Interval]]) -> dict[int, Rows]:
    if not tokens:
        return {}
    holding = layout.holdings[layout.places.index(place)]
    return {peer: tuple(rows_of(holding, tokens[peer])) for peer in sorted(tokens)}


def _gather(layout: Layout, index: int, routes: Sequence[Route]) -> Gather | None:
    group = next(ranks for ranks in layout.replicas if index in ranks)
    if len(group) == 1:
        return None
    places = tuple(layout.places[rank] for rank in group)
    received: dict[int, list[Interval]] = {place: [] for place in places}
    for route in routes:
        if route.destination in received:
            received[route.destination].append((route.start, route.stop))
    holding = layout.holdings[index]
    shares = tuple(tuple(rows_of(holding, sorted(received[p]))) for p in places)
    return Gather(places, shares)
