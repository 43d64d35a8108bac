"""Who holds which tokens: half-open intervals of global token ids, at rows of a buffer."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise

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
        return cls(tuple(sorted(span for span in spans if span.start < span.stop)))

    @cached_property
    def num_tokens(self) -> int:
        """Number of tokens held."""
        return sum(len(span) for span in self.spans)

    @property
    def rows(self) -> list[int]:
        """Buffer rows in ascending order of token id."""
        runs = (range(span.row, span.row + len(span)) for span in self.spans)
        return list(chain.from_iterable(runs))

    @property
    def token_ids(self) -> list[int]:
        """Token ids, ascending."""
        return [token for span in self.spans for token in range(span.start, span.stop)]

    @property
    def intervals(self) -> list[tuple[int, int]]:
        """Token ids as half-open intervals, ascending."""
        return [(span.start, span.stop) for span in self.spans]

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
