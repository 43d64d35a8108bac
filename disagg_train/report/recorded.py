"""The recorded steps of a run, analysed: timelines, their summaries, and what follows from them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_train.boundary.of_job import job_graph, job_placement
from disagg_train.report.messages import Messages, arrows
from disagg_train.report.module_shares import ModuleShares, module_shares
from disagg_train.report.run_folder import RunFolder, TracedStep
from disagg_train.report.step_summary import StepSummary, summarise
from disagg_train.report.timeline_data import OpNames, step_data
from disagg_train.report.waits import StepTimeline, timeline_of


@dataclass(frozen=True)
class Recorded:
    """What the recorded steps of a run tell.

    Args:
        timelines: of the steps.
        summaries: of the steps.
        shares: per module, where its ranks' time goes.
        data: what the page draws of it, as plain data.
    """

    timelines: Sequence[StepTimeline]
    summaries: Sequence[StepSummary]
    shares: Mapping[str, ModuleShares]
    data: Mapping[str, Any]

    @property
    def slowest(self) -> tuple[int, int] | None:
        """The rank that was at work longest in most steps, and in how many; None without steps."""
        found = Counter(
            max(summary.ranks, key=lambda rank: rank.busy_s).place
            for summary in self.summaries
            if summary.ranks
        )
        return found.most_common(1)[0] if found else None

    @property
    def idle(self) -> float:
        """Part of the steps that a rank idles, the mean over ranks and steps."""
        parts = [
            rank.idle_s / timeline.length_s
            for timeline, summary in zip(self.timelines, self.summaries, strict=True)
            for rank in summary.ranks
        ]
        return sum(parts) / len(parts) if parts else 0.0


def analyse(run: RunFolder) -> Recorded:
    """Return what the recorded steps of a run tell."""
    graph, messages, names = job_graph(run.job), Messages(run.job), OpNames()
    timelines, summaries, steps = [], [], []
    for step in run.steps:
        sent = messages.of_step(step.plan) if step.plan is not None else {}
        timeline = timeline_of(step.number, step.reports, graph, sent)
        rows = _row_names(run, step)
        summary = summarise(timeline, rows)
        drawn = arrows(timeline, sent)
        steps.append(step_data(timeline, summary, drawn, names, rows))
        timelines.append(timeline)
        summaries.append(summary)
    placement = job_placement(run.job)
    places = {module: placement.module_places(module) for module in run.job.modules}
    data = {"modules": list(run.job.modules), "ops": names.listed, "steps": steps}
    return Recorded(timelines, summaries, module_shares(timelines, places), data)


def _row_names(run: RunFolder, step: TracedStep) -> dict[int, str]:
    return {
        report.place: run.rows.get(report.place, f"rank/{report.place}") for report in step.reports
    }
