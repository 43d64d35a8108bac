"""Makes a job's step plans: which samples each microbatch of each dp rank holds."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig
from disagg_train.driver.learning_rate import learning_rate
from disagg_train.driver.schedules import checked_training_schedule, evaluation_microbatches
from disagg_train.planner.analytic_costs import costs_by_size
from disagg_train.planner.balance import Balancer
from disagg_train.planner.deferral import check_order
from disagg_train.planner.gpus import named_hardware
from disagg_train.planner.in_order import by_count, start_assignment
from disagg_train.planner.machine import Machine
from disagg_train.planner.step_plan import Assignment, SampleSize, StepPlan


class StepPlanner:
    """Plans one training step after the other; the same samples give the same plan.

    Args:
        job: the job.
    """

    def __init__(self, job: JobConfig) -> None:
        self._job = job

    def plan(self, step: int, samples: tuple[SampleSize, ...]) -> StepPlan:
        """Return the plan of a step.

        Args:
            step: its number.
            samples: that it takes, in sampler order.

        Raises:
            PlanError: the LLM takes a sample before its encoders, or beyond the declared span or
                a window.
        """
        rate = learning_rate(self._job.train, step)
        return StepPlan(step, samples, self._assignment(samples), rate)

    def _assignment(self, samples: tuple[SampleSize, ...]) -> Mapping[str, Assignment]:
        train = self._job.train
        assignment: Mapping[str, Assignment] = start_assignment(self._job, samples)
        if train.balance != "none":
            assignment = self._balancer.balanced(samples, assignment)
        check_order(samples, assignment, self._job)
        return assignment

    @cached_property
    def _balancer(self) -> Balancer:
        job = self._job
        graph = job_graph(job)
        schedule = checked_training_schedule(job, graph)
        return Balancer(job, graph, schedule, costs_by_size(job, named_hardware(job) or Machine()))


def evaluation_plan(job: JobConfig, sizes: Sequence[SampleSize]) -> StepPlan:
    """Return the plan of an evaluation over the first held-out samples."""
    samples = tuple(sizes[: job.train.evaluation.samples])
    return StepPlan(-1, samples, by_count(job, len(samples), evaluation_microbatches(job)))
