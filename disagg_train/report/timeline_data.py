"""Recorded steps as columns of numbers, which a page decodes in no time.

A column is a typed array, little-endian, in base64. Times are whole microseconds.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np

from disagg_train.report.messages import Arrow
from disagg_train.report.module_shares import module_of
from disagg_train.report.step_summary import RankSummary, StepSummary, category, causes_in_words
from disagg_train.report.waits import StepTimeline, TimedOp
from disagg_train.schedule.ops import OpKind

_MICRO = 1e6
_NOBODY = -1
_LETTERS = {
    OpKind.FORWARD: "F",
    OpKind.BACKWARD: "B",
    OpKind.BACKWARD_INPUT: "b",
    OpKind.BACKWARD_WEIGHT: "w",
    OpKind.EVALUATE: "E",
    OpKind.RUN_AHEAD: "A",
    OpKind.SEND_FORWARD: "s",
    OpKind.RECV_FORWARD: "r",
    OpKind.SEND_BACKWARD: "s",
    OpKind.RECV_BACKWARD: "r",
    OpKind.START_GRAD_SYNC: "sync",
    OpKind.GRAD_SYNC: "sync",
    OpKind.AGREE: "agree",
    OpKind.OPTIMIZER_STEP: "update",
}


class OpNames:
    """The ops of all steps, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self.listed: list[list[str]] = []
        """Per op: its name, its category, its module, and a label of a few letters."""

    def number(self, timed: TimedOp) -> int:
        """Return the number of an op."""
        if timed.name not in self._numbers:
            self._numbers[timed.name] = len(self.listed)
            self.listed.append([timed.name, category(timed), module_of(timed), _label(timed)])
        return self._numbers[timed.name]


def _label(timed: TimedOp) -> str:
    if timed.op is None:
        return "start"
    number = str(timed.op.microbatch) if timed.op.microbatch >= 0 else ""
    return _LETTERS[timed.op.kind] + number


def step_data(
    timeline: StepTimeline,
    summary: StepSummary,
    arrows: Sequence[Arrow],
    names: OpNames,
    rank_names: Mapping[int, str],
) -> dict[str, Any]:
    """Return a step as plain data for the page.

    Args:
        timeline: the step.
        summary: what it tells.
        arrows: its messages.
        names: takes up the names of its ops.
        rank_names: of the rows.
    """
    places = list(timeline.rows)
    row_of = {place: row for row, place in enumerate(places)}
    counts = [len(row) for row in timeline.rows.values()]
    firsts = dict(zip(places, accumulate(counts, initial=0), strict=False))
    ops = list(chain.from_iterable(timeline.rows.values()))
    causes = [_NOBODY if op.waits_for is None else row_of[op.waits_for] for op in ops]
    return {
        "number": timeline.number,
        "length": round(timeline.length_s * _MICRO),
        "rows": [rank_names[place] for place in places],
        "counts": counts,
        "op": _column([names.number(op) for op in ops], "<u2"),
        "begin": _times(op.begin_s for op in ops),
        "duration": _times(op.end_s - op.begin_s for op in ops),
        "wait": _times(op.wait_s for op in ops),
        "cause": _column(causes, "<i2"),
        "sent": _column([firsts[each.sender] + each.sent for each in arrows], "<u4"),
        "received": _column([firsts[each.receiver] + each.received for each in arrows], "<u4"),
        "tokens": _column([each.tokens for each in arrows], "<u4"),
        "sentence": summary.sentence,
        "ranks": [_rank(rank, rank_names) for rank in summary.ranks],
        "waits": [
            [firsts[wait.place] + wait.index, row_of[wait.place], wait.text]
            for wait in summary.waits
        ],
    }


def _rank(rank: RankSummary, names: Mapping[int, str]) -> list[Any]:
    times = rank.forward_s, rank.backward_s, rank.boundary_s, rank.sync_s, rank.idle_s
    numbers = [round(time_s * _MICRO) for time_s in (*times, rank.held_up_s)]
    return [*numbers, causes_in_words(rank, names)]


def _times(seconds: Iterable[float]) -> str:
    return _column([max(0, round(each * _MICRO)) for each in seconds], "<u4")


def _column(values: Sequence[int], kind: str) -> str:
    return base64.b64encode(np.array(values, kind).tobytes()).decode()
