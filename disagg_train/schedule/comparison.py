"""Simulated steps against the steps that were run: the same op lists, the ops' own times."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, median
from typing import Any

from disagg_train.metrics.records import RankReport, Span
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.measured_costs import measured_costs
from disagg_train.schedule.ops import Schedule
from disagg_train.schedule.simulate import simulate

Reports = Sequence[RankReport]

_COMPUTE = ("forward", "backward")


@dataclass(frozen=True)
class SimulationResult:
    """Medians over the steps of a run.

    Args:
        schedule: name of the schedule.
        measured_ms: from the first rank's begin of a step to the last rank's end.
        simulated_ms: the same, simulated with the times of that step's ops.
        step_error: simulated / measured - 1.
        measured_bubble: per module, the part of the step in which its ranks neither run
            forwards nor backwards.
        simulated_bubble: the same, simulated.
        steps: how many.
    """

    schedule: str
    measured_ms: float
    simulated_ms: float
    step_error: float
    measured_bubble: Mapping[str, float]
    simulated_bubble: Mapping[str, float]
    steps: int

    @property
    def bubble_gap(self) -> float:
        """The largest difference of a module's bubbles."""
        measured, simulated = self.measured_bubble, self.simulated_bubble
        return max(abs(measured[module] - simulated[module]) for module in measured)

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self) | {"bubble_gap": self.bubble_gap}


def compare(steps: Sequence[Reports], schedule: Schedule, graph: StageGraph) -> SimulationResult:
    """Simulate each of some steps that were run, with the times that its own ops took.

    Args:
        steps: per step, the reports of all ranks.
        schedule: what was run.
        graph: its stage graph.
    """
    timelines = [
        simulate(schedule, graph, measured_costs([reports], graph, schedule.num_microbatches))
        for reports in steps
    ]
    places = timelines[0].places
    measured_s = median(_step_s(reports) for reports in steps)
    simulated_s = median(timeline.step_time_s for timeline in timelines)
    return SimulationResult(
        schedule=schedule.name,
        measured_ms=1e3 * measured_s,
        simulated_ms=1e3 * simulated_s,
        step_error=simulated_s / measured_s - 1.0,
        measured_bubble={
            module: median(_bubble(reports, ranks) for reports in steps)
            for module, ranks in places.items()
        },
        simulated_bubble={
            module: median(timeline.module_bubble[module] for timeline in timelines)
            for module in places
        },
        steps=len(steps),
    )


def _step_s(reports: Reports) -> float:
    begin_s = min(report.spans[0].begin_s for report in reports)
    return max(report.spans[-1].end_s for report in reports) - begin_s


def _bubble(reports: Reports, places: Sequence[int]) -> float:
    hosts = [report for report in reports if report.place in places]
    return 1.0 - mean(_busy_s(report.spans) for report in hosts) / _step_s(reports)


def _busy_s(spans: Sequence[Span]) -> float:
    return sum(span.duration_s for span in spans if span.category in _COMPUTE)
