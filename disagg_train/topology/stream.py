"""How the sequences of one lane become the rows of each of its ranks.

A lane is a data-parallel rank's share of a microbatch. Its *full stream* lays its padded
sequences one after the other; every rank of the lane holds some intervals of it:

    packed   each sequence cut into 2 * cp chunks, of which cp rank r holds r and 2cp - 1 - r;
             under sequence parallelism the rank's rows are then cut over tp as one stream
    padded   the same, but all sequences have one length and tp cuts each of them

With cp = 1 a sequence is whole. Padding belongs to no layout.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import lcm

from disagg_train.topology.layout import Holding, Span

Interval = tuple[int, int]


@dataclass(frozen=True)
class Cut:
    """Over how many ranks a lane's rows are cut.

    Args:
        cp: context-parallel degree.
        tp: ranks that share a cp rank's rows: the tensor-parallel degree under sequence
            parallelism, else 1.
        packed: whether sequences of different lengths lie one after the other; else they
            are padded to one length.
    """

    cp: int = 1
    tp: int = 1
    packed: bool = True

    @property
    def chunks(self) -> int:
        """Equal parts that each sequence is cut into."""
        return 2 * self.cp if self.cp > 1 else 1

    def stream(self, lengths: Sequence[int]) -> "Stream":
        """Return the full stream of sequences of the given lengths."""
        return self._packed(lengths, 0) if self.packed else self._padded(lengths, len(lengths), 0)

    def streams(self, lanes: Sequence[Sequence[int]], equal: bool) -> tuple["Stream", ...]:
        """Return the full stream of every lane.

        Args:
            lanes: sequence lengths, lane by lane.
            equal: give all lanes equally many rows, as experts' collectives need.
        """
        if not equal:
            return tuple(self.stream(lengths) for lengths in lanes)
        if self.packed:
            rows = max(self.stream(lengths).num_rows for lengths in lanes)
            return tuple(self._packed(lengths, rows) for lengths in lanes)
        most = max(map(len, lanes))
        longest = max((length for lengths in lanes for length in lengths), default=0)
        return tuple(self._padded(lengths, most, longest) for lengths in lanes)

    def _packed(self, lengths: Sequence[int], least_rows: int) -> "Stream":
        chunks = self.chunks
        padded = [_round_up(length, chunks) for length in lengths]
        rows = sum(padded) // self.cp
        align = lcm(2, self.tp) if self.cp > 1 and self.tp > 1 else self.tp
        tail = max(_round_up(rows, align), least_rows) - rows
        return Stream(tuple(lengths), tuple(padded), tail * self.cp, self)

    def _padded(self, lengths: Sequence[int], count: int, least_length: int) -> "Stream":
        length = _round_up(max([*lengths, least_length]), self.chunks * self.tp)
        return Stream(tuple(lengths), (length,) * count, 0, self)


@dataclass(frozen=True)
class Stream:
    """The full stream of one lane.

    Args:
        lengths: tokens of each sequence.
        padded: positions that each sequence takes; sequences of padding alone may follow.
        tail: positions of padding behind them, cut like one more sequence.
        cut: over how many ranks.
    """

    lengths: tuple[int, ...]
    padded: tuple[int, ...]
    tail: int
    cut: Cut

    @cached_property
    def parts(self) -> tuple[int, ...]:
        """Positions of everything in the stream: the sequences, then the tail."""
        return self.padded + ((self.tail,) if self.tail else ())

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first position of each part."""
        return tuple(accumulate(self.parts, initial=0))[:-1]

    @cached_property
    def num_positions(self) -> int:
        """Length of the full stream."""
        return sum(self.parts)

    @property
    def num_rows(self) -> int:
        """Rows of one cp rank, before any cut over tp."""
        return self.num_positions // self.cut.cp

    @property
    def num_shard_rows(self) -> int:
        """Rows of one tp rank of a cp rank."""
        return self.num_rows // self.cut.tp

    def context_intervals(self, cp_rank: int) -> list[Interval]:
        """Return the positions of one cp rank, in the order of its rows."""
        return [each for part in self._context_parts(cp_rank) for each in part]

    def intervals(self, cp_rank: int, tp_rank: int) -> list[Interval]:
        """Return the positions of one tp rank of a cp rank, in the order of its rows."""
        if self.cut.packed:
            rows = self.num_shard_rows
            return _slice(self.context_intervals(cp_rank), tp_rank * rows, rows)
        kept: list[Interval] = []
        for part in self._context_parts(cp_rank):
            rows = sum(stop - start for start, stop in part) // self.cut.tp
            kept += _slice(part, tp_rank * rows, rows)
        return kept

    def holding(self, spans: Iterable[Span], cp_rank: int, tp_rank: int) -> Holding:
        """Return the tokens of one rank.

        Args:
            spans: tokens at rows of the full stream, ascending by row.
            cp_rank: coordinate of the rank.
            tp_rank: coordinate of the rank among those that share the rows.
        """
        clipped = _clipped(list(spans), self.runs(cp_rank, tp_rank))
        return Holding.of(clipped) if clipped else Holding()

    def runs(self, cp_rank: int, tp_rank: int) -> list[Interval]:
        """Return the same positions as ``intervals``, neighbours joined where that is quick."""
        if self.cut.packed and self.cut.cp == 1:
            rows = self.num_shard_rows
            return [(tp_rank * rows, (tp_rank + 1) * rows)]
        return self.intervals(cp_rank, tp_rank)

    def _context_parts(self, cp_rank: int) -> list[list[Interval]]:
        """Return the chunks that a cp rank holds of each part of the stream."""
        cut, parts = self.cut, []
        for start, length in zip(self.starts, self.parts, strict=True):
            chunk = length // cut.chunks
            held = (cp_rank, 2 * cut.cp - 1 - cp_rank) if cut.cp > 1 else (0,)
            parts.append([(start + n * chunk, start + (n + 1) * chunk) for n in held])
        return parts


def _round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _slice(intervals: Iterable[Interval], first: int, count: int) -> list[Interval]:
    """Return rows ``first .. first + count - 1`` of the rows that intervals make."""
    kept, row = [], 0
    for start, stop in intervals:
        low = max(first - row, 0)
        high = min(first + count - row, stop - start)
        if low < high:
            kept.append((start + low, start + high))
        row += stop - start
    return kept


def _clipped(spans: Sequence[Span], intervals: Iterable[Interval]) -> list[Span]:
    """Return the parts of spans inside ascending intervals, at the rows that these make."""
    clipped, first, row = [], 0, 0
    for start, stop in intervals:
        while first < len(spans) and spans[first].row + len(spans[first]) <= start:
            first += 1
        for span in spans[first:]:
            if span.row >= stop:
                break
            low, high = max(span.row, start), min(span.row + len(span), stop)
            token = span.start + low - span.row
            clipped.append(Span(token, token + high - low, row + low - start))
        row += stop - start
    return clipped
