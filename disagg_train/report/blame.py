"""Why a rank waited: what the ranks that it waited for were doing meanwhile.

A rank that is waited for may be waiting itself; then what that one waits for counts, and so on,
until somebody is found at work.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence

from disagg_train.report.waits import StepTimeline, TimedOp
from disagg_train.schedule.ops import OpKind

Cause = tuple[int, str]
"""A rank, and what it did."""

Causes = dict[Cause, float]
"""Seconds by cause."""

BETWEEN, NOT_BEGUN = "was between two ops", "had not begun the step"
_MOST_HOPS = 12
_LEAST_S = 1e-6

_WORDS = {
    OpKind.FORWARD: "ran forward of",
    OpKind.BACKWARD: "ran backward of",
    OpKind.BACKWARD_INPUT: "ran backward (inputs) of",
    OpKind.BACKWARD_WEIGHT: "ran backward (weights) of",
    OpKind.EVALUATE: "evaluated",
    OpKind.RUN_AHEAD: "ran forward of the next step's",
    OpKind.SEND_FORWARD: "sent over",
    OpKind.RECV_FORWARD: "received over",
    OpKind.SEND_BACKWARD: "sent gradients over",
    OpKind.RECV_BACKWARD: "received gradients over",
    OpKind.START_GRAD_SYNC: "started the gradient sync of",
    OpKind.GRAD_SYNC: "synced gradients of",
    OpKind.AGREE: "agreed on the step",
    OpKind.OPTIMIZER_STEP: "updated",
}


def doing(timed: TimedOp) -> str:
    """Return in words what a rank did at an op, without the microbatch's number."""
    if timed.op is None:
        return "prepared the step"
    where = timed.op.module or timed.op.boundary
    return f"{_WORDS[timed.op.kind]} {where}".rstrip()


def longest_first(causes: Causes) -> list[tuple[Cause, float]]:
    """Return causes with their seconds, the longest first."""
    return sorted(causes.items(), key=lambda item: -item[1])


class Blame:
    """Finds causes in one step.

    Args:
        timeline: of the step.
    """

    def __init__(self, timeline: StepTimeline) -> None:
        self._rows = timeline.rows
        self._begins = {
            place: [timed.begin_s for timed in row] for place, row in timeline.rows.items()
        }

    def of_wait(self, timed: TimedOp) -> Causes:
        """Return the seconds of an op's wait by what caused them."""
        found: Causes = defaultdict(float)
        if timed.waits_for is not None:
            end_s = timed.begin_s + timed.wait_s
            self._follow(found, timed.waits_for, timed.begin_s, end_s, _MOST_HOPS)
        return found

    def _follow(self, found: Causes, place: int, begin_s: float, end_s: float, hops: int) -> None:
        """Count what a rank did between two moments."""
        left_s = end_s - begin_s
        for timed in self._between(place, begin_s, end_s):
            waited_till_s = timed.begin_s + timed.wait_s
            wait = max(begin_s, timed.begin_s), min(end_s, waited_till_s)
            work = max(begin_s, waited_till_s), min(end_s, timed.end_s)
            if wait[1] > wait[0]:
                left_s -= wait[1] - wait[0]
                if timed.waits_for is not None and hops:
                    self._follow(found, timed.waits_for, *wait, hops - 1)
                else:
                    found[place, doing(timed)] += wait[1] - wait[0]
            if work[1] > work[0]:
                left_s -= work[1] - work[0]
                found[place, doing(timed)] += work[1] - work[0]
        late_s = max(0.0, min(end_s, self._begins[place][0]) - begin_s)
        for what, spent_s in ((NOT_BEGUN, late_s), (BETWEEN, left_s - late_s)):
            if spent_s > _LEAST_S:
                found[place, what] += spent_s

    def _between(self, place: int, begin_s: float, end_s: float) -> Sequence[TimedOp]:
        begins, row = self._begins[place], self._rows[place]
        first = max(0, bisect_right(begins, begin_s) - 1)
        return row[first : bisect_right(begins, end_s)]
