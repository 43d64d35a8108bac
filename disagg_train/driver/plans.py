"""The plans of a job's steps, one after the other."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from disagg_train.config.job import JobConfig
from disagg_train.data.sampler import Batches
from disagg_train.driver.step_planner import StepPlanner, evaluation_plan
from disagg_train.errors import DataError
from disagg_train.planner.in_order import token_budget
from disagg_train.planner.step_plan import SampleSize, StepPlan


class TrainingPlans(Iterator[StepPlan]):
    """The plan of every training step.

    Args:
        job: the job.
        batches: samples of each step; to be mended, they must be ``Batches``.
        steps: how many plans there are; as many as are left of the job's steps where not given.
        first_step: number of the first one.
    """

    def __init__(
        self,
        job: JobConfig,
        batches: Iterator[tuple[SampleSize, ...]],
        steps: int | None = None,
        first_step: int = 0,
    ) -> None:
        self._planner, self._batches = StepPlanner(job), batches
        last = job.train.steps
        self._end = last if steps is None else min(first_step + steps, last)
        self.step = first_step
        """Number of the next plan."""

    def __next__(self) -> StepPlan:
        """Return the next step's plan."""
        if self.step >= self._end:
            raise StopIteration
        samples = next(self._batches)
        self.step += 1
        return self.plan(self.step - 1, samples)

    def plan(self, step: int, samples: tuple[SampleSize, ...]) -> StepPlan:
        """Return the plan of a step that takes some samples."""
        return self._planner.plan(step, samples)

    def without(self, keys: Collection[int]) -> StepPlan:
        """Make the newest plan again as if some samples had never been there."""
        self._sampler.take_out(keys)
        self.step -= 1
        return next(self)

    def sampler_state(self) -> dict[str, Any]:
        """Return the state with which the next plan is drawn."""
        return self._sampler.state()

    def go_back(
        self, step: int, sampler_state: Mapping[str, Any], without: Collection[int]
    ) -> None:
        """Draw the plan of an earlier step next.

        Args:
            step: its number.
            sampler_state: with which it was drawn.
            without: keys of samples that are taken out now.
        """
        self._sampler.restore(sampler_state)
        self._sampler.take_out(without)
        self.step = step

    def lay_out(self, job: JobConfig) -> None:
        """Lay coming plans out for the same job on other ranks."""
        self._planner = StepPlanner(job)

    @property
    def _sampler(self) -> Batches:
        assert isinstance(self._batches, Batches)
        return self._batches


class RecordedPlans(Iterator[StepPlan]):
    """Plans, whose samples are kept for another run to train on.

    Args:
        plans: that are recorded; mended ones replace what they mend.
    """

    def __init__(self, plans: TrainingPlans) -> None:
        self._plans = plans
        self.batches: list[tuple[SampleSize, ...]] = []

    def __next__(self) -> StepPlan:
        """Return the next plan."""
        plan = next(self._plans)
        self.batches.append(plan.samples)
        return plan

    def without(self, keys: Collection[int]) -> StepPlan:
        """Make the newest plan again as if some samples had never been there."""
        plan = self._plans.without(keys)
        self.batches[-1] = plan.samples
        return plan


class EvaluationPlans(Iterator[StepPlan]):
    """The plan of an evaluation over the first held-out samples, again and again.

    Args:
        job: the job.
        sizes: of all held-out samples.
    """

    def __init__(self, job: JobConfig, sizes: Sequence[SampleSize]) -> None:
        self._job, self._sizes = job, list(sizes)

    def __next__(self) -> StepPlan:
        """Return the plan of an evaluation."""
        if not self._sizes:
            raise DataError("no held-out sample is left; all were taken out as bad")
        return evaluation_plan(self._job, self._sizes)

    def without(self, keys: Collection[int]) -> StepPlan:
        """Make the plan again without some samples, which stay away."""
        self._sizes = [size for size in self._sizes if size.key not in keys]
        return next(self)


def training_plans(job: JobConfig, batches: Iterator[tuple[SampleSize, ...]]) -> TrainingPlans:
    """Return the plans of all training steps."""
    return TrainingPlans(job, batches)


def training_batches(job: JobConfig, sizes: Sequence[SampleSize]) -> Batches:
    """Return the samples of every step, as many as there is room for.

    Args:
        job: the job.
        sizes: of all training samples.
    """
    budget, train = token_budget(job), job.train
    num_fitting = len if budget is None else budget.num_fitting
    return Batches(sizes, job.seed, train.global_batch, num_fitting)
