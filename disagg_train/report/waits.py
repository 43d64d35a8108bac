"""A recorded step with its waits: how long each op waited for another rank, and for which one.

A span holds the wait for those who come late. What an op waits for is the same as in the
schedule's simulation: a receive for the last sender's launch, a collective for its last rank, a
send for the one two before it to be received.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from disagg_train.metrics.records import RankReport, Span
from disagg_train.metrics.trace import START_STEP
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import MOST_SENDS, Op, OpKind, op_of

Exchange = tuple[str, bool, int]
"""An edge, whether gradients go over it, and the microbatch."""
Senders = Mapping[Exchange, Mapping[int, Collection[int]]]
"""Per exchange and receiver, the ranks that send to it, as far as they are known."""

_PARTNER = {
    OpKind.RECV_FORWARD: OpKind.SEND_FORWARD,
    OpKind.RECV_BACKWARD: OpKind.SEND_BACKWARD,
    OpKind.SEND_FORWARD: OpKind.RECV_FORWARD,
    OpKind.SEND_BACKWARD: OpKind.RECV_BACKWARD,
}


@dataclass(frozen=True, slots=True)
class TimedOp:
    """What a rank did, in seconds since the step began.

    Args:
        name: of the op.
        op: None for what is none, as the start of a step.
        begin_s: when the rank came to it.
        end_s: when it was done.
        wait_s: so much of it, from its begin on, was waiting.
        waits_for: the rank that came last.
    """

    name: str
    op: Op | None
    begin_s: float
    end_s: float
    wait_s: float = 0.0
    waits_for: int | None = None

    @property
    def work_s(self) -> float:
        """Seconds without the wait."""
        return self.end_s - self.begin_s - self.wait_s


@dataclass(frozen=True)
class StepTimeline:
    """A recorded step.

    Args:
        number: of the step.
        length_s: from the first rank's begin to the last one's end.
        rows: per global rank, what it did, in order.
    """

    number: int
    length_s: float
    rows: Mapping[int, Sequence[TimedOp]]


def timeline_of(
    number: int, reports: Sequence[RankReport], graph: StageGraph, senders: Senders
) -> StepTimeline:
    """Return a step with its waits.

    Args:
        number: of the step.
        reports: of its ranks.
        graph: the job's stage graph, for who computes together.
        senders: who sends to whom; where it says nothing, all senders of an exchange are
            taken to send to all its receivers.
    """
    spans = [span for report in reports for span in report.spans]
    if not spans:
        return StepTimeline(number, 0.0, {})
    begin_s, end_s = min(span.begin_s for span in spans), max(span.end_s for span in spans)
    waits = _Waits(reports, graph, senders)
    rows = {
        report.place: [waits.timed(report.place, span, begin_s) for span in report.spans]
        for report in reports
    }
    return StepTimeline(number, end_s - begin_s, rows)


class _Waits:
    """Finds what the ops of one step waited for."""

    def __init__(self, reports: Sequence[RankReport], graph: StageGraph, senders: Senders) -> None:
        self._graph, self._senders = graph, senders
        self._step: dict[Op | None, dict[int, Span]] = defaultdict(dict)
        for report in reports:
            for span in report.spans:
                op = op_of(span.name)
                if op is not None or span.name == START_STEP:
                    self._step[op][report.place] = span

    @cached_property
    def _lanes(self) -> dict[tuple[str, int], tuple[int, ...]]:
        return {
            (node.name, place): lane
            for node in self._graph.nodes.values()
            for lane in node.lanes
            for place in lane
        }

    def timed(self, place: int, span: Span, origin_s: float) -> TimedOp:
        """Return a span with its wait."""
        op, wait_s, cause = op_of(span.name), 0.0, None
        if op is not None or span.name == START_STEP:
            last_s, cause = max(
                ((at_s, rank) for rank, at_s in self._arrivals(place, op).items()),
                default=(span.begin_s, None),
            )
            wait_s = min(max(0.0, last_s - span.begin_s), self._longest_wait_s(place, op, span))
        if wait_s == 0.0 or cause == place:
            wait_s, cause = 0.0, None
        begin_s, end_s = span.begin_s - origin_s, span.end_s - origin_s
        return TimedOp(span.name, op, begin_s, end_s, wait_s, cause)

    def _longest_wait_s(self, place: int, op: Op | None, span: Span) -> float:
        """Return how much of a span may be waiting: of a pass, what its partners did not need."""
        if op is None or not op.kind.is_compute:
            return span.duration_s
        together = self._together(place, op)
        return span.duration_s - min(self._step[op][rank].duration_s for rank in together)

    def _together(self, place: int, op: Op) -> list[int]:
        """Return the ranks that run a pass as one."""
        lane = self._lanes.get((op.module, place), (place,))
        return [rank for rank in lane if rank in self._step[op]]

    def _arrivals(self, place: int, op: Op | None) -> dict[int, float]:
        """Return when each rank that an op waits for was there."""
        if op is None or op.kind is OpKind.AGREE:
            return self._begins(op, self._step[op])
        if op.kind.is_compute:
            return self._begins(op, self._together(place, op))
        if op.kind is OpKind.GRAD_SYNC:
            begun = Op(OpKind.START_GRAD_SYNC, op.module)
            return self._ends(begun, None) or self._begins(op, self._step[op])
        if op.kind.is_recv:
            return self._ends(self._partner(op, 0), self._senders_to(place, op))
        if op.kind.is_send and op.microbatch >= MOST_SENDS:
            return self._ends(self._partner(op, MOST_SENDS), None)
        return {}

    def _partner(self, op: Op, before: int) -> Op:
        return Op(_PARTNER[op.kind], "", op.microbatch - before, op.boundary)

    def _senders_to(self, place: int, op: Op) -> Collection[int] | None:
        exchange = op.boundary, op.kind.is_gradient, op.microbatch
        return self._senders.get(exchange, {}).get(place)

    def _begins(self, op: Op | None, ranks: Iterable[int]) -> dict[int, float]:
        return {rank: self._step[op][rank].begin_s for rank in ranks}

    def _ends(self, op: Op, ranks: Iterable[int] | None) -> dict[int, float]:
        spans = self._step.get(op, {})
        chosen = spans if ranks is None else [rank for rank in ranks if rank in spans]
        return {rank: spans[rank].end_s for rank in chosen}
