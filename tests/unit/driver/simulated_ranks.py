"""Ranks that run nothing: they report what a simulated step would show them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import pairwise

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.driver.schedules import checked_training_schedule
from disagg_train.metrics.records import RankReport, StepRecord
from disagg_train.planner.sample_costs import SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import JobCosts, step_costs
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.costs import CostModel
from disagg_train.schedule.ops import OpKind
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import Timeline
from tests.unit.driver.fake_group import FakeGroup, done


class SimulatedRanks(FakeGroup):
    """All groups of a job in one; the first step takes three times as long.

    Args:
        job: the job.
        costs: of its modules and links.
    """

    def __init__(self, job: JobConfig, costs: JobCosts) -> None:
        super().__init__()
        self.job, self.costs = job, costs
        self._graph = job_graph(job)
        self._schedule = checked_training_schedule(job, self._graph)

    def timeline(self, plan: StepPlan, upcoming: StepPlan | None) -> Timeline:
        costs = self._costs(plan)
        following = {} if upcoming is None else self._costs(upcoming).seconds
        ahead = {
            (OpKind.RUN_AHEAD, stage): following.get((OpKind.FORWARD, stage), (0.0,))
            for stage in self._graph.nodes
        }
        costs = replace(costs, seconds={**costs.seconds, **ahead})
        return simulate(self._schedule, self._graph, costs)

    def _costs(self, plan: StepPlan) -> CostModel:
        table = SampleTable.of(plan.samples, list(self.job.encoders))
        seats = {name: Seats.of(each) for name, each in plan.assignment.items()}
        costs = step_costs(self.job, self._graph, self.costs, table, seats)
        times = 3 if plan.step == 0 else 1
        seconds = {key: tuple(times * s for s in each) for key, each in costs.seconds.items()}
        return replace(costs, seconds=seconds)

    def reports(self, timeline: Timeline) -> Iterator[RankReport]:
        for report in timeline.reports():
            for rank in timeline.kinds[report.place]:
                counted = round(2.0 * timeline.peak_bytes[rank])
                yield replace(report, place=rank, peak_activation_bytes=counted)

    def train(self, plan: StepPlan, upcoming: StepPlan | None) -> Future[Sequence[RankReport]]:
        self.calls.append(f"train {plan.step}")
        return done(list(self.reports(self.timeline(plan, upcoming))))

    def steps(self, plans: Iterator[StepPlan]) -> list[tuple[StepRecord, list[RankReport]]]:
        found = []
        for plan, upcoming in pairwise([*plans, None]):
            assert plan is not None
            timeline = self.timeline(plan, upcoming)
            found.append((record(plan, timeline.step_time_s), list(self.reports(timeline))))
        return found


def record(plan: StepPlan, step_time_s: float) -> StepRecord:
    return StepRecord(plan.step, 0.0, 0.0, 0.0, 1, 1, step_time_s, False, 0, 0, {})


def whole_passes(costs: JobCosts, module: str, kind: OpKind) -> tuple[float, float, float]:
    """Return the coefficients of all stages of a module together."""
    passes = [stage.passes[kind] for stage in costs.modules[module].stages]
    return (
        sum(each.per_token_s for each in passes),
        sum(each.per_square_s for each in passes),
        sum(each.per_microbatch_s for each in passes),
    )
