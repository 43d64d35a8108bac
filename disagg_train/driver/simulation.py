"""A job simulated before it runs, or as it ran: its first step against a cost model."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.driver.schedules import job_schedules
from disagg_train.errors import ConfigError
from disagg_train.metrics.timeline_picture import draw_timeline
from disagg_train.metrics.trace import read_trace, write_trace
from disagg_train.planner.analytic_costs import analytic_costs
from disagg_train.planner.machine import Hardware, Machine
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.costs import CostModel
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.measured_costs import measured_costs
from disagg_train.schedule.ops import Schedule
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import Timeline

_MOST_RUNS = 3


@dataclass(frozen=True)
class Simulation:
    """A simulated step of a job.

    Args:
        job: the job's name.
        schedule: its op lists.
        timeline: when every rank runs them.
        assumptions: where the costs are from, for people.
    """

    job: str
    schedule: Schedule
    timeline: Timeline
    assumptions: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data: bubbles and seconds per module, bytes per rank."""
        timeline = self.timeline
        return {
            "job": self.job,
            "schedule": self.schedule.name,
            "num_microbatches": self.schedule.num_microbatches,
            "costs": self.assumptions,
            "step_time_s": timeline.step_time_s,
            "bubble": timeline.module_bubble,
            "busy_s": timeline.module_busy_s,
            "bubble_per_rank": list(timeline.bubble),
            "peak_bytes": [round(peak) for peak in timeline.peak_bytes],
        }

    def draw(self, path: Path) -> None:
        """Draw the timeline as PNG, a row per kind of rank.

        Raises:
            ConfigError: matplotlib is not there.
        """
        bubbles = ", ".join(f"{m} {b:.1%}" for m, b in self.timeline.module_bubble.items())
        title = (
            f"{self.job}: {self.schedule.name}, {self.schedule.num_microbatches} microbatches. "
            f"Step {seconds(self.timeline.step_time_s)}; bubble: {bubbles}"
        )
        try:
            draw_timeline(path, self.timeline.reports(), self._row_names(), title)
        except ImportError as error:
            way_out = "pip install 'disagg_train[demo]'"
            raise ConfigError(
                f"a picture needs matplotlib, which is not here; {way_out}"
            ) from error

    def write_trace(self, path: Path) -> None:
        """Write the timeline as Chrome trace, a row per kind of rank."""
        write_trace(path, [self.timeline.reports()], self._row_names())

    def _row_names(self) -> dict[int, str]:
        kinds = self.timeline.kinds
        return {first: f"{_ranks(kinds[first])}: {self._hosted(first)}" for first in kinds}

    def _hosted(self, rank: int) -> str:
        return " + ".join(stage.name for stage in self.timeline.graph.stages_of(rank))

    def tables(self) -> RenderableType:
        """Return what people read: per module its bubble, per kind of rank its memory."""
        timeline = self.timeline
        modules = _table("modules", "module", "ranks", "bubble", "busy")
        for name, places in timeline.places.items():
            busy, bubble = timeline.module_busy_s[name], timeline.module_bubble[name]
            modules.add_row(name, str(len(places)), f"{bubble:.1%}", seconds(busy))
        ranks = _table("ranks", "ranks", "stages", "bubble", "busy", "peak activations")
        for first, alike in timeline.kinds.items():
            numbers = f"{timeline.bubble[first]:.1%}", seconds(timeline.busy_s[first])
            peak = gibibytes(timeline.peak_bytes[first])
            ranks.add_row(_ranks(alike), self._hosted(first), *numbers, peak)
        summary = (
            f"{self.schedule.name}, {self.schedule.num_microbatches} microbatches: "
            f"step time {seconds(timeline.step_time_s)}\ncosts: {self.assumptions}"
        )
        return Group(modules, ranks, summary)


def simulate_job(
    job: JobConfig, plan: StepPlan, hardware: Hardware | Machine, run: Path | None = None
) -> Simulation:
    """Simulate a step of a job.

    Args:
        job: a validated job.
        plan: the step.
        hardware: what it would run on.
        run: folder of a run whose trace gives the seconds; memory stays computed. None takes
            both from the sizes of the model.

    Raises:
        DataError: the run left no trace.
        PlanError: the run was of other stages.
    """
    graph, (schedule, _) = job_graph(job), job_schedules(job)
    costs = analytic_costs(job, graph, plan, hardware)
    assumptions = f"by the sizes of the model, {hardware}, {job.train.precision}"
    if run is not None:
        costs, assumptions = _of_run(run, graph, schedule, costs)
    return Simulation(job.name, schedule, simulate(schedule, graph, costs), assumptions)


def _of_run(
    run: Path, graph: StageGraph, schedule: Schedule, computed: CostModel
) -> tuple[CostModel, str]:
    """Return a run's costs with the computed memory, and where they are from."""
    steps = read_trace(run / "trace.json")
    measured = measured_costs(steps, graph, schedule.num_microbatches)
    costs = replace(measured, activation_bytes=computed.activation_bytes)
    return costs, f"medians of the {len(steps)} steps in {run / 'trace.json'}"


def seconds(value_s: float) -> str:
    """Return a time for people: three digits, in seconds, milliseconds or microseconds."""
    if value_s >= 1.0:
        return f"{value_s:.3g} s"
    return f"{value_s * 1e3:.3g} ms" if value_s >= 1e-3 else f"{value_s * 1e6:.3g} us"


def gibibytes(num_bytes: float) -> str:
    """Return an amount of memory for people, in GiB, or MiB where it is small."""
    gib = num_bytes / 2**30
    return f"{gib:,.1f} GiB" if gib >= 1.0 else f"{gib * 2**10:,.1f} MiB"


def _ranks(ranks: Sequence[int]) -> str:
    """Return ranks as runs of neighbours: ``ranks 0-3, 8``; two of them where there are many."""
    runs: list[list[int]] = []
    for rank in ranks:
        if not runs or rank != runs[-1][-1] + 1:
            runs.append([rank])
        runs[-1][1:] = [rank]
    names = [str(run[0]) if run[0] == run[-1] else f"{run[0]}-{run[-1]}" for run in runs]
    if len(names) > _MOST_RUNS:
        names[2:] = [f"... ({len(ranks)})"]
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(names)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    return table
