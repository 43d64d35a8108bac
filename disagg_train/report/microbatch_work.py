"""How even the work of microbatches is, as the plans have it and with samples in their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from disagg_train.config.job import JobConfig
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.gpus import named_hardware
from disagg_train.planner.in_order import start_assignment
from disagg_train.planner.machine import Machine
from disagg_train.planner.sample_costs import Floats, SampleTable
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_costs import JobCosts, lane_sums
from disagg_train.planner.step_plan import Assignment, StepPlan

Works = Sequence[float]
"""Per microbatch, the work of its busiest lane, in times of an even share of the step's."""


@dataclass(frozen=True)
class MicrobatchWork:
    """A module's microbatches of one step.

    Args:
        in_order: with samples in their order.
        planned: as the plan has it.
    """

    in_order: Works
    planned: Works


class WorkMeter:
    """Weighs microbatches by what their samples cost by the sizes of the model.

    Args:
        job: the job.
    """

    def __init__(self, job: JobConfig) -> None:
        self._job = job
        self._costs: JobCosts = costs_by_size(job, named_hardware(job) or Machine())

    def of_step(self, plan: StepPlan) -> dict[str, MicrobatchWork]:
        """Return the work of every module's microbatches."""
        table = SampleTable.of(plan.samples, list(self._job.encoders))
        in_order = start_assignment(self._job, plan.samples)
        return {
            name: MicrobatchWork(*self._works(table, name, (in_order, plan.assignment)))
            for name in self._job.modules
        }

    def _works(
        self, table: SampleTable, name: str, assignments: Sequence[Mapping[str, Assignment]]
    ) -> list[Works]:
        found: list[Works] = []
        for assignment in assignments:
            lanes_ML = self._lanes(table, name, Seats.of(assignment[name]))
            even = float(lanes_ML.mean()) or 1.0
            found.append([float(work) for work in lanes_ML.max(axis=1) / even])
        return found

    def _lanes(self, table: SampleTable, name: str, seats: Seats) -> Floats:
        tokens_ML, squares_ML = lane_sums(self._job, table, name, seats)
        return self._costs.modules[name].sample_s(tokens_ML, squares_ML)


def spread(works: Sequence[Works]) -> float:
    """Return the standard deviation of microbatches' work, the mean of some steps."""
    return float(np.mean([np.std(each) for each in works])) if works else 0.0


def busiest(works: Sequence[Works]) -> float:
    """Return the work of the busiest microbatch of a step, the mean of some steps."""
    return float(np.mean([max(each) for each in works])) if works else 0.0


def works_of(job: JobConfig, plans: Sequence[StepPlan]) -> dict[str, list[MicrobatchWork]]:
    """Return per module the work of its microbatches in each step; nothing without plans."""
    if not plans:
        return {}
    meter = WorkMeter(job)
    steps = [meter.of_step(plan) for plan in plans]
    return {name: [step[name] for step in steps] for name in job.modules}
