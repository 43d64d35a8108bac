"""Measures what a job's modules and links take: runs a trial, and fits what its ranks reported.

``measure`` is the only function here that runs anything.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from statistics import median

import numpy as np

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.driver import loop
from disagg_train.driver.ports import Group
from disagg_train.driver.schedules import checked_training_schedule
from disagg_train.metrics.records import RankReport, StepRecord
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.fit import PassRow, TransferRow, fit_pass, fit_transfer
from disagg_train.planner.machine import Machine
from disagg_train.planner.measurements import (
    LinkMeasurement,
    ModuleMeasurement,
    StageFit,
    signature,
)
from disagg_train.planner.profiles import Profile
from disagg_train.planner.sample_costs import Floats, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import JobCosts, lane_sums, step_costs
from disagg_train.planner.step_plan import SampleSize, StepPlan
from disagg_train.planner.trials import TrialPlans
from disagg_train.schedule.costs import CostModel, Values
from disagg_train.schedule.graph import StageGraph, StageNode
from disagg_train.schedule.measured_costs import OpTime, op_times, start_s, transfer_times
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.schedule.simulate import peak_bytes, simulate

_PACKAGES = ("disagg_train", "torch", "megatron-core")

Steps = Sequence[tuple[StepRecord, Sequence[RankReport]]]


@dataclass(frozen=True)
class Place:
    """Where a trial ran.

    Args:
        hardware: per group, what its ranks compute on.
        nodes: per global rank, the node that it is on.
    """

    hardware: Mapping[str, str]
    nodes: Sequence[str]

    @property
    def ranks_per_node(self) -> int:
        """Most ranks on one node."""
        return max(self.nodes.count(node) for node in set(self.nodes))


@dataclass(frozen=True)
class Measured:
    """What a trial told.

    Args:
        job: as it was run.
        modules: of the job.
        links: between nodes and inside them, as far as rows went over them.
    """

    job: JobConfig
    modules: tuple[ModuleMeasurement, ...]
    links: tuple[LinkMeasurement, ...]


def measure(
    groups: Sequence[Group], job: JobConfig, sizes: Sequence[SampleSize], place: Place
) -> Measured:
    """Run a trial on ranks that are set up, and fit what they report.

    Args:
        groups: every group of the job.
        job: as a trial runs it.
        sizes: of the training samples.
        place: where the ranks are.

    Raises:
        DataError: no sample has tokens of a module.
        RankError: a rank died, hung or raised.
    """
    plans = TrialPlans.of(job, sizes)
    steps = list(loop.train(groups, plans.steps(), job.deadlines.step_s))
    return fitted(Trial(job, plans, steps), place)


def fitted(trial: "Trial", place: Place) -> Measured:
    """Return the fits of a trial, with the error of the steps that they predict."""
    modules = [_module(trial, name, place) for name in trial.job.modules]
    links = _links(trial, place)
    error = trial.step_error(Profile(modules, links).costs(trial.job))
    known = tuple(each.model_copy(update={"step_error": error}) for each in modules)
    return Measured(trial.job, known, tuple(links))


class Trial:
    """A trial that was run.

    Args:
        job: as it was run.
        plans: of its steps.
        steps: records and reports of all steps, in order.
    """

    def __init__(self, job: JobConfig, plans: TrialPlans, steps: Steps) -> None:
        self.job, self._plans, self._steps = job, plans, steps
        self.graph: StageGraph = job_graph(job)
        self._schedule: Schedule = checked_training_schedule(job, self.graph)

    def stages(self, module: str) -> list[StageNode]:
        """Return the stages of a module, in order."""
        return [node for node in self.graph.nodes.values() if node.module == module]

    # Passes.

    @cached_property
    def pass_rows(self) -> dict[tuple[str, OpKind], list[PassRow]]:
        """Per stage and kind of pass, the medians of every lane's microbatches over the steps."""
        seconds: dict[tuple[str, OpKind, int, int, int], list[float]] = defaultdict(list)
        timed = ((step, found) for step in self._plans.timed for found in self._ops[step])
        for step, found in timed:
            at, op = self._at(step, found.op), found.op
            if op.kind.is_compute and at is not None:
                number, kind = at
                seconds[op.module, kind, number, op.microbatch, found.lane].append(found.seconds)
        rows: dict[tuple[str, OpKind], list[PassRow]] = defaultdict(list)
        for (stage, kind, number, microbatch, lane), samples in sorted(seconds.items()):
            tokens, squares = self._work(number, self.graph.nodes[stage], microbatch, lane)
            rows[stage, kind].append((tokens, squares, median(samples)))
        return rows

    @cached_property
    def _ops(self) -> list[list[OpTime]]:
        """What the ops of every step took."""
        return [list(op_times(reports, self.graph)) for _, reports in self._steps]

    def _at(self, step: int, op: Op) -> tuple[int, OpKind] | None:
        """Return the plan that an op is of, and as what it counts.

        What is run ahead is a forward of the next step's plan; after the last step, of none.
        """
        if op.kind is not OpKind.RUN_AHEAD:
            return self._plans.number_of(step), op.kind
        if step + 1 >= self._plans.num_steps:
            return None
        return self._plans.number_of(step + 1), OpKind.FORWARD

    def _work(
        self, number: int, stage: StageNode, microbatch: int, lane: int
    ) -> tuple[float, float]:
        """Return the tokens and squares of a lane; of the busiest, where lanes run as one."""
        tokens_ML, squares_ML = self._sums[number, stage.module]
        if len(stage.lanes) < tokens_ML.shape[1]:
            lane = int(tokens_ML[microbatch].argmax())
        return float(tokens_ML[microbatch, lane]), float(squares_ML[microbatch, lane])

    @cached_property
    def _sums(self) -> dict[tuple[int, str], tuple[Floats, Floats]]:
        return {
            (number, name): lane_sums(
                self.job, self._table(plan), name, Seats.of(plan.assignment[name])
            )
            for number, plan in enumerate(self._plans.plans)
            for name in self.job.modules
        }

    def _table(self, plan: StepPlan) -> SampleTable:
        return SampleTable.of(plan.samples, list(self.job.encoders))

    # The end of a step, and its begin.

    def once_s(self, stage: str) -> dict[OpKind, float]:
        """Return the medians of what a stage does once a step.

        Updates are taken from the counted steps: in others a GPU may be at them when they end.
        """
        found = {
            OpKind.GRAD_SYNC: self._seconds_of(OpKind.GRAD_SYNC, stage, self._plans.timed),
            OpKind.OPTIMIZER_STEP: self._seconds_of(
                OpKind.OPTIMIZER_STEP, stage, self._plans.counted
            ),
        }
        return {kind: median(samples) for kind, samples in found.items() if samples}

    def _seconds_of(self, kind: OpKind, stage: str, steps: range) -> list[float]:
        return [
            each.seconds
            for step in steps
            for each in self._ops[step]
            if each.op.kind is kind and each.op.module == stage
        ]

    def _start_s(self) -> float:
        return median(start_s(self._steps[step][1]) for step in self._plans.timed)

    # Transfers and memory.

    @cached_property
    def transfer_rows(self) -> dict[str, list[TransferRow]]:
        """Per edge, bytes of the busiest rank and the median seconds of every exchange."""
        seconds: dict[tuple[OpKind, str, int, int], list[float]] = defaultdict(list)
        for step in self._plans.timed:
            number = self._plans.number_of(step)
            for sent in transfer_times(self._steps[step][1], self.graph):
                op = sent.op
                seconds[op.kind, op.boundary, number, op.microbatch].append(sent.seconds)
        rows: dict[str, list[TransferRow]] = defaultdict(list)
        for (kind, edge, number, microbatch), samples in sorted(seconds.items()):
            num_bytes = self._computed[number].transfers[kind, edge].num_bytes
            rows[edge].append((num_bytes[microbatch], median(samples)))
        return rows

    def activation_ratio(self, module: str) -> float | None:
        """Return counted bytes over computed ones, the median of the ranks of a module."""
        step = self._plans.counted[0]
        _, reports = self._steps[step]
        costs = self._computed[self._plans.number_of(step)]
        ratios = []
        for report in reports:
            computed = peak_bytes(self._schedule.ops[report.place], costs)
            if module in report.modules and computed and report.peak_activation_bytes:
                ratios.append(report.peak_activation_bytes / computed)
        return median(ratios) if ratios else None

    @cached_property
    def _computed(self) -> list[CostModel]:
        """What the sizes of the model say of every plan: bytes, for the most part."""
        return self._costs(costs_by_size(self.job, Machine()))

    def _costs(self, costs: JobCosts) -> list[CostModel]:
        found = []
        for plan in self._plans.plans:
            seats = {name: Seats.of(each) for name, each in plan.assignment.items()}
            found.append(step_costs(self.job, self.graph, costs, self._table(plan), seats))
        return found

    def step_error(self, costs: JobCosts) -> float:
        """Return how far simulated steps are from what the steps took, relative, the median."""
        begin_s, errors = self._start_s(), []
        models = self._costs(costs)
        for number, each in enumerate(models):
            following = models[(number + 1) % len(models)]
            seconds = {**each.seconds, **_run_ahead(following)}
            model = replace(each, seconds=seconds, start_s=begin_s)
            predicted_s = simulate(self._schedule, self.graph, model).step_time_s
            measured_s = median(
                self._steps[step][0].step_time_s
                for step in self._plans.timed
                if self._plans.number_of(step) == number
            )
            errors.append(abs(predicted_s - measured_s) / measured_s)
        return median(errors)


def _run_ahead(following: CostModel) -> dict[tuple[OpKind, str], Values]:
    """Return the seconds of forwards of the following step that are run ahead."""
    return {
        (OpKind.RUN_AHEAD, stage): values
        for (kind, stage), values in following.seconds.items()
        if kind is OpKind.FORWARD
    }


def _module(trial: Trial, name: str, place: Place) -> ModuleMeasurement:
    module, stages = trial.job.modules[name], trial.stages(name)
    rows = trial.pass_rows
    fits = [
        StageFit(
            passes={
                kind: fit_pass(found) for (stage, kind), found in rows.items() if stage == node.name
            },
            once_s=trial.once_s(node.name),
        )
        for node in stages
    ]
    usual = [row for row in rows[stages[0].name, OpKind.FORWARD] if row[0]]
    return ModuleMeasurement(
        module=name,
        signature=signature(trial.job, name),
        parallel=module.parallel,
        recompute=module.recompute,
        hardware=place.hardware[module.group],
        versions=_versions(),
        stages=tuple(fits),
        tokens=float(np.median([tokens for tokens, _, _ in usual])),
        squares=float(np.median([squares for _, squares, _ in usual])),
        activation_ratio=trial.activation_ratio(name),
    )


def _links(trial: Trial, place: Place) -> list[LinkMeasurement]:
    """Return fits over all edges of a kind; colocated ends have no link between them."""
    edges: dict[tuple[tuple[str, ...], bool], list[str]] = defaultdict(list)
    for name in trial.transfer_rows:
        edge = trial.graph.edge(name)
        source, destination = (trial.graph.nodes[end] for end in (edge.source, edge.destination))
        if source.places & destination.places:
            continue
        ends = {place.hardware[node.group] for node in (source, destination)}
        nodes = {place.nodes[rank] for rank in source.places | destination.places}
        edges[tuple(sorted(ends)), len(nodes) > 1].append(name)
    return [
        LinkMeasurement(
            ends=ends,
            crosses_nodes=crosses,
            ranks_per_node=place.ranks_per_node,
            edges=tuple(names),
            fit=fit_transfer([row for name in names for row in trial.transfer_rows[name]]),
        )
        for (ends, crosses), names in edges.items()
    ]


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
