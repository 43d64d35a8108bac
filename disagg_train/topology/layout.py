"""Who holds which tokens: half-open intervals of global token ids, at rows of a buffer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from disagg_train.errors import PlanError


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """Tokens ``[start, stop)`` held at rows ``row .. row + stop - start - 1`` of a buffer."""

    start: int
    stop: int
    row: int

    def __len__(self) -> int:
        return self.stop - self.start

    def clip(self, start: int, stop: int) -> "Span | None":
        """Return the part inside ``[start, stop)``, or None where there is none."""
        low, high = max(start, self.start), min(stop, self.stop)
        return Span(low, high, self.row + low - self.start) if low < high else None


@dataclass(frozen=True)
class Holding:
    """The tokens of one rank and microbatch, sorted by token id, none twice."""

    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        for left, right in pairwise(self.spans):
            if right.start < left.stop:
                raise PlanError(f"a rank holds token {right.start} twice: {left} and {right}")

    @classmethod
    def of(cls, spans: Iterable[Span]) -> "Holding":
        """Build a holding from spans in any order; empty ones are dropped."""
        return cls(tuple(sorted(span for span in spans if len(span))))

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens held."""
        return sum(len(span) for span in self.spans)

    @property
    def rows(self) -> list[int]:
        """Buffer rows in ascending order of token id."""
        return [row for span in self.spans for row in range(span.row, span.row + len(span))]

    @property
    def token_ids(self) -> list[int]:
        """Token ids, ascending."""
        return [token for span in self.spans for token in range(span.start, span.stop)]

    def compact(self) -> "Holding":
        """Return the same tokens at rows 0, 1, 2, ... in ascending order of token id."""
        spans, row = [], 0
        for span in self.spans:
            spans.append(Span(span.start, span.stop, row))
            row += len(span)
        return Holding(tuple(spans))


@dataclass(frozen=True)
class Layout:
    """What every rank of one side of a boundary holds of one microbatch.

    Args:
        places: global rank of each side's rank; equal numbers are the same process.
        holdings: tokens of each of these ranks, in the same order.
        replicas: the ranks (as indices into ``places``) that hold the same tokens, group
            by group; every rank is in exactly one group.
    """

    places: tuple[int, ...]
    holdings: tuple[Holding, ...]
    replicas: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if len(self.places) != len(self.holdings):
            raise PlanError(f"{len(self.places)} places for {len(self.holdings)} holdings")
        if sorted(i for group in self.replicas for i in group) != list(range(len(self.places))):
            raise PlanError(f"replica groups {self.replicas} must hold every rank exactly once")


def shard_stream(spans: Iterable[Span], length: int, parts: int) -> tuple[Holding, ...]:
    """Cut a stream's rows into ``parts`` contiguous shards of equal length.

    Args:
        spans: tokens at rows of the whole stream.
        length: rows of the stream; it is padded up to a multiple of ``parts``, and the
            padding belongs to no layout.
        parts: number of shards (the tensor-parallel degree under sequence parallelism).

    Returns:
        One holding per shard, with rows counted from the shard's first row.

    Raises:
        PlanError: a token lies past the end of the stream.
    """
    spans = list(spans)
    last = max((span.row + len(span) for span in spans), default=0)
    if last > length:
        raise PlanError(f"tokens reach row {last} of a stream of {length} rows")
    shard_rows = -(-length // parts)
    shards: list[list[Span]] = [[] for _ in range(parts)]
    for span in spans:
        for part in range(span.row // max(shard_rows, 1), parts):
            first = part * shard_rows
            low = max(span.row, first)
            high = min(span.row + len(span), first + shard_rows)
            if low >= high:
                break
            token = span.start + low - span.row
            shards[part].append(Span(token, token + high - low, low - first))
    return tuple(Holding.of(shard) for shard in shards)


def stack_rows(lengths: Sequence[int]) -> list[int]:
    """Return the first row of each of several sequences laid one after the other."""
    rows = [0]
    for length in lengths:
        rows.append(rows[-1] + length)
    return rows[:-1]
