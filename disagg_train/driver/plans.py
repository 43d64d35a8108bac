"""A job's step plans and op lists."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import LANGUAGE, JobConfig, TrainConfig
from disagg_train.data.sampler import Batches
from disagg_train.driver.learning_rate import learning_rate
from disagg_train.errors import ConfigError, DataError, PlanError
from disagg_train.planner.balance import alongside, in_order, token_budget
from disagg_train.planner.step_plan import Assignment, SampleSize, StepPlan
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.file import load_schedule
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.language import PIPELINES
from disagg_train.schedule.ops import Schedule


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
        self._job, self._batches = job, batches
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
        return training_plan(self._job, self.step - 1, samples)

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
        self._job = job

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


def training_plan(job: JobConfig, step: int, samples: tuple[SampleSize, ...]) -> StepPlan:
    """Return the plan of a training step that takes some samples."""
    rate = learning_rate(job.train, step)
    return StepPlan(step, samples, _training_assignment(job, samples), rate)


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


def evaluation_plan(job: JobConfig, sizes: Sequence[SampleSize]) -> StepPlan:
    """Return the plan of an evaluation over the first held-out samples."""
    samples = tuple(sizes[: job.train.evaluation.samples])
    return StepPlan(-1, samples, _by_count(job, len(samples), evaluation_microbatches(job)))


def evaluation_microbatches(job: JobConfig) -> int:
    """Return how many microbatches an evaluation has: as large as those of training."""
    per_microbatch = -(-job.train.global_batch // job.train.microbatches)
    return max(1, -(-job.train.evaluation.samples // per_microbatch))


def _training_assignment(job: JobConfig, samples: tuple[SampleSize, ...]) -> dict[str, Assignment]:
    """Return which samples each microbatch of each dp rank of every module holds."""
    budget = token_budget(job)
    if budget is None:
        return _by_count(job, len(samples), job.train.microbatches)
    language = budget.assign(samples)
    return {
        name: language if name == LANGUAGE else alongside(language, module.parallel.dp)
        for name, module in job.modules.items()
    }


def _by_count(job: JobConfig, num_samples: int, microbatches: int) -> dict[str, Assignment]:
    return {name: assign(job, name, num_samples, microbatches) for name in job.modules}


def assign(job: JobConfig, module: str, num_samples: int, microbatches: int) -> Assignment:
    """Return which samples each microbatch of each dp rank of a module holds, by count alone."""
    return in_order(num_samples, microbatches, job.modules[module].parallel.dp)


def job_schedules(job: JobConfig) -> tuple[Schedule, Schedule]:
    """Return the checked op lists of a training step and of an evaluation."""
    graph = job_graph(job)
    training = _training_schedule(job, graph)
    evaluation = evaluation_schedule(graph, evaluation_microbatches(job))
    check(evaluation, graph)
    return training, evaluation


def _training_schedule(job: JobConfig, graph: StageGraph) -> Schedule:
    """Build and check the schedule that the job names, or the file that it names."""
    train = job.train
    if train.schedule in PIPELINES:
        window = train.window or train.microbatches
        schedule = training_schedule(graph, train.microbatches, window, PIPELINES[train.schedule])
        check(schedule, graph)
        return schedule
    return _schedule_of_ones_own(train, graph)


def _schedule_of_ones_own(train: TrainConfig, graph: StageGraph) -> Schedule:
    path = Path(train.schedule)
    if not path.exists():
        raise ConfigError(
            f"train.schedule is {train.schedule!r}: neither one of {sorted(PIPELINES)} nor a file"
        )
    schedule = load_schedule(path)
    if schedule.num_microbatches != train.microbatches:
        raise ConfigError(
            f"train.microbatches={train.microbatches}, but {path} is a schedule of "
            f"{schedule.num_microbatches}; set train.microbatches: {schedule.num_microbatches}"
        )
    try:
        check(schedule, graph)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
    return schedule
