"""The time in which a rank runs no op, from the spans of its reports. Pure."""

from collections import defaultdict
from collections.abc import Sequence

from disagg_train.metrics.records import RankReport, Span


def dead_time_fraction(runs: Sequence[Sequence[Sequence[RankReport]]]) -> float:
    """Return the share of time between ops and between consecutive steps, of the worst rank.

    Waiting inside an op (for a message, for ``agree``) is no dead time; loading, comparing
    plans, answering the driver and taking the next plan is.

    Args:
        runs: [run][step] -> the reports of all ranks. The steps of a run follow each other;
            what is between two runs does not count.
    """
    dead_s: dict[int, float] = defaultdict(float)
    total_s: dict[int, float] = defaultdict(float)
    for run in runs:
        for place, spans in _spans_by_place(run).items():
            elapsed_s = spans[-1].end_s - spans[0].begin_s
            total_s[place] += elapsed_s
            dead_s[place] += elapsed_s - sum(span.duration_s for span in spans)
    return max((dead_s[place] / total_s[place] for place in total_s), default=0.0)


def _spans_by_place(run: Sequence[Sequence[RankReport]]) -> dict[int, list[Span]]:
    by_place: dict[int, list[Span]] = defaultdict(list)
    for reports in run:
        for report in reports:
            by_place[report.place] += report.spans
    return {place: spans for place, spans in by_place.items() if spans}
