"""The time in which a rank runs no op, from the spans of its reports. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from disagg_train.metrics.records import RankReport


@dataclass
class _Rank:
    """What one rank's spans sum up to: whole steps, and what lies between two of them."""

    dead_s: float = 0.0
    elapsed_s: float = 0.0
    steps: int = 0
    gaps_s: list[float] = field(default_factory=list)

    def add(self, report: RankReport) -> None:
        """Add a step: from its first op's begin to its last op's end."""
        elapsed_s = report.spans[-1].end_s - report.spans[0].begin_s
        self.elapsed_s += elapsed_s
        self.dead_s += elapsed_s - sum(span.duration_s for span in report.spans)
        self.steps += 1

    @property
    def fraction(self) -> float:
        """Dead time of a mean step and the mean gap after it, over both."""
        gap_s = sum(self.gaps_s) / max(len(self.gaps_s), 1)
        return (self.dead_s / self.steps + gap_s) / (self.elapsed_s / self.steps + gap_s)


def dead_time_fraction(runs: Sequence[Sequence[Sequence[RankReport]]]) -> float:
    """Return the share of time between ops and between consecutive steps, of the worst rank.

    Waiting inside an op (for a message, for ``agree``) is no dead time; loading, comparing
    plans, answering the driver and taking the next plan is. Every step counts with one gap
    after it, although the last one of a run has none to measure.

    Args:
        runs: [run][step] -> the reports of all ranks, with spans. The steps of a run follow
            each other; what is between two runs does not count.
    """
    ranks: dict[int, _Rank] = defaultdict(_Rank)
    for run in runs:
        for reports in run:
            for report in reports:
                ranks[report.place].add(report)
        for before, after in pairwise(run):
            for last, first in zip(before, after, strict=True):
                gap_s = first.spans[0].begin_s - last.spans[-1].end_s
                ranks[last.place].gaps_s.append(gap_s)
    return max((rank.fraction for rank in ranks.values()), default=0.0)
