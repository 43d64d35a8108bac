"""Predicted against measured: the schedule's simulation, and what the planner expected."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from disagg_train.boundary.of_job import job_placement
from disagg_train.errors import PlanError
from disagg_train.metrics.records import RankReport, mean_busy_s
from disagg_train.report.run_folder import RunFolder
from disagg_train.schedule.comparison import SimulationResult, compare
from disagg_train.schedule.graph import StageGraph


@dataclass(frozen=True)
class PlannedTime:
    """What the planner expected a rank of a module to compute in a step, and what it did.

    Args:
        module: its name.
        planned_s: seconds of its forwards and backwards.
        measured_s: the same, the median of the traced steps.
    """

    module: str
    planned_s: float
    measured_s: float


def simulated(run: RunFolder, graph: StageGraph) -> SimulationResult | None:
    """Return how the simulation of the traced steps compares; None where the run lacks a file.

    Raises:
        PlanError: the trace or the op lists are of another layout than the job's.
    """
    if run.schedule is None or not run.steps:
        return None
    if len(run.schedule.ops) != graph.num_ranks:
        raise PlanError(
            f"schedule.yaml is of {len(run.schedule.ops)} ranks, the job of {graph.num_ranks}"
        )
    return compare([step.reports for step in run.steps], run.schedule, graph)


def planned(run: RunFolder) -> list[PlannedTime]:
    """Return the planner's expectations; none where the job was not planned."""
    if run.job.plan is None or not run.steps:
        return []
    modules = list(run.job.modules)
    measured = [mean_busy_s(_with_modules(run, step.reports), modules) for step in run.steps]
    return [
        PlannedTime(module, expected_s, median(each[module] for each in measured))
        for module, expected_s in run.job.plan.busy_s.items()
    ]


def _with_modules(run: RunFolder, reports: Sequence[RankReport]) -> list[RankReport]:
    """Return a trace's reports with the modules that the ranks host, which a trace lacks."""
    placement = job_placement(run.job)
    hosted = {
        place: placement.modules_on(group)
        for group in run.job.groups
        for place in placement.places(group)
    }
    return [
        RankReport(report.place, hosted.get(report.place, ()), spans=report.spans)
        for report in reports
    ]
