"""Routes: who sends which tokens to whom, so that every token crosses a boundary once.

The senders' replicas share what their group must send, and the receivers' replicas share
what their group needs, each by cutting the tokens, in ascending order, into equal parts.
Both cuts partition the same tokens, so a route is the intersection of a sender's part with
a receiver's part. A token that both groups can hand over inside one process stays there.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, starmap

from disagg_train.errors import PlanError
from disagg_train.topology.layout import Holding, Layout, Span

Interval = tuple[int, int]


@dataclass(frozen=True, order=True, slots=True)
class Route:
    """Tokens ``[start, stop)`` from the process ``source`` to the process ``destination``."""

    source: int
    destination: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def tokens(self) -> range:
        """The token ids of the route."""
        return range(self.start, self.stop)

    @property
    def is_local(self) -> bool:
        """Whether both ends are the same process."""
        return self.source == self.destination

    def reversed(self) -> "Route":
        """Return the route of the gradients."""
        return Route(self.destination, self.source, self.start, self.stop)


def intersect(source: Layout, destination: Layout) -> tuple[Route, ...]:
    """Return the routes that turn one layout of a boundary's tokens into another.

    Every token that some destination group holds is sent exactly once, by one replica of
    its source group to one replica of the destination group. Backward uses
    ``[r.reversed() for r in routes]``.

    Args:
        source: token intervals held by the encoder's last stage, in global token ids.
        destination: token intervals needed by the LLM's first stage.

    Returns:
        Routes ordered by (source, destination, start).

    Raises:
        PlanError: the destination needs a token that no source rank holds.
    """
    pairs = _group_pairs(source, destination)
    routes: list[Route] = []
    to_send: dict[int, list[Interval]] = defaultdict(list)
    to_receive: dict[int, list[Interval]] = defaultdict(list)
    for (sender, receiver), intervals in pairs.items():
        shared = _shared_places(source, sender, destination, receiver)
        if shared:
            routes += _local_routes(shared, intervals)
        else:
            to_send[sender] += intervals
            to_receive[receiver] += intervals
    senders = _shares(source, to_send)
    receivers = _shares(destination, to_receive)
    return tuple(sorted(routes + _crossings(senders, receivers)))


def _group_pairs(source: Layout, destination: Layout) -> dict[tuple[int, int], list[Interval]]:
    """Return, per (source group, destination group), the tokens that go between them."""
    held = sorted(
        (span.start, span.stop, group)
        for group, ranks in enumerate(source.replicas)
        for span in source.holdings[ranks[0]].spans
    )
    starts = [start for start, _, _ in held]
    pairs: dict[tuple[int, int], list[Interval]] = defaultdict(list)
    for receiver, ranks in enumerate(destination.replicas):
        for span in destination.holdings[ranks[0]].spans:
            token = span.start
            index = max(bisect_right(starts, token) - 1, 0)
            while token < span.stop:
                if index >= len(held) or not held[index][0] <= token < held[index][1]:
                    raise PlanError(
                        f"the destination rank {destination.places[ranks[0]]} needs token "
                        f"{token}, which no source rank holds"
                    )
                _, stop, sender = held[index]
                pairs[sender, receiver].append((token, min(stop, span.stop)))
                token, index = min(stop, span.stop), index + 1
    return pairs


def _shared_places(source: Layout, sender: int, destination: Layout, receiver: int) -> list[int]:
    """Return the processes that are in both groups, in the receivers' order."""
    senders = {source.places[rank] for rank in source.replicas[sender]}
    receivers = [destination.places[rank] for rank in destination.replicas[receiver]]
    return [place for place in receivers if place in senders]


def _local_routes(places: Sequence[int], intervals: Iterable[Interval]) -> list[Route]:
    parts = cut(sorted(intervals), len(places))
    return [
        Route(place, place, start, stop)
        for place, part in zip(places, parts, strict=True)
        for start, stop in part
    ]


def _shares(layout: Layout, by_group: dict[int, list[Interval]]) -> list[tuple[int, int, int]]:
    """Return (start, stop, place), sorted: each group's tokens cut over its replicas."""
    shares = []
    for group, intervals in by_group.items():
        ranks = layout.replicas[group]
        parts = cut(sorted(intervals), len(ranks)) if len(ranks) > 1 else [intervals]
        for rank, part in zip(ranks, parts, strict=True):
            shares += [(start, stop, layout.places[rank]) for start, stop in part]
    return sorted(shares)


def _crossings(
    senders: list[tuple[int, int, int]], receivers: list[tuple[int, int, int]]
) -> list[Route]:
    """Intersect two sorted partitions of the same tokens by one merge."""
    routes, s, r = [], 0, 0
    while s < len(senders) and r < len(receivers):
        start = max(senders[s][0], receivers[r][0])
        stop = min(senders[s][1], receivers[r][1])
        if start < stop:
            routes.append(Route(senders[s][2], receivers[r][2], start, stop))
        if senders[s][1] <= receivers[r][1]:
            s += 1
        else:
            r += 1
    return routes


def cut(intervals: Sequence[Interval], parts: int) -> list[list[Interval]]:
    """Cut sorted intervals into ``parts`` runs whose token counts differ by at most one."""
    total = sum(stop - start for start, stop in intervals)
    bounds = [total * part // parts for part in range(parts + 1)]
    runs: list[list[Interval]] = [[] for _ in range(parts)]
    seen = 0
    for start, stop in intervals:
        part, token = bisect_right(bounds, seen) - 1, start
        while token < stop:
            taken = min(bounds[part + 1] - seen, stop - token)
            if taken:
                runs[part].append((token, token + taken))
            token, seen, part = token + taken, seen + taken, part + 1
    return runs


def common(first: Sequence[Interval], second: Sequence[Interval]) -> list[Interval]:
    """Return the tokens that are in both of two sorted lists of intervals."""
    found, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        start, stop = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < stop:
            found.append((start, stop))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(tokens: Sequence[Interval], removed: Sequence[Interval]) -> list[Interval]:
    """Return the tokens of one sorted list of intervals that are not in another."""
    if not tokens:
        return []
    stops = [tokens[0][0], *(stop for _, stop in removed)]
    starts = [*(start for start, _ in removed), tokens[-1][1]]
    gaps = [(stop, start) for stop, start in zip(stops, starts, strict=True) if stop < start]
    return common(tokens, gaps)


def rows_of(holding: Holding, intervals: Iterable[Interval]) -> list[int]:
    """Return the buffer rows of the given tokens, in the order of the intervals.

    Raises:
        PlanError: a token is not in the holding.
    """
    return list(chain.from_iterable(starmap(range, row_runs(holding, intervals))))


def row_runs(holding: Holding, intervals: Iterable[Interval]) -> list[Interval]:
    """Return the same rows as runs ``[first, stop)``, some of which may be neighbours.

    Raises:
        PlanError: a token is not in the holding.
    """
    spans = holding.spans
    starts = [span.start for span in spans]
    runs: list[Interval] = []
    for start, stop in intervals:
        token, index = start, bisect_right(starts, start) - 1
        while token < stop:
            if not (0 <= index < len(spans) and starts[index] <= token < spans[index].stop):
                raise PlanError(f"token {token} is not held here: {_brief(spans)}")
            end, row = min(stop, spans[index].stop), spans[index].row + token - starts[index]
            runs.append((row, row + end - token))
            token, index = end, index + 1
    return runs


def _brief(spans: Sequence[Span]) -> str:
    shown = ", ".join(f"[{span.start}, {span.stop})" for span in spans[:8])
    return shown + (" ..." if len(spans) > 8 else "")
