"""A job's step plans and op lists."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig, TrainConfig
from disagg_train.driver.learning_rate import learning_rate
from disagg_train.errors import ConfigError, PlanError
from disagg_train.planner.balance import in_order
from disagg_train.planner.step_plan import Assignment, SampleSize, StepPlan
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.file import load_schedule
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.language import PIPELINES
from disagg_train.schedule.ops import Schedule


def training_plans(job: JobConfig, batches: Iterator[tuple[SampleSize, ...]]) -> Iterator[StepPlan]:
    """Yield the plan of every training step."""
    for step in range(job.train.steps):
        yield _plan(
            job, step, next(batches), job.train.microbatches, learning_rate(job.train, step)
        )


def evaluation_plan(job: JobConfig, sizes: Sequence[SampleSize]) -> StepPlan:
    """Return the plan of an evaluation over the first held-out samples."""
    samples = tuple(sizes[: job.train.evaluation.samples])
    return _plan(job, -1, samples, evaluation_microbatches(job), 0.0)


def evaluation_microbatches(job: JobConfig) -> int:
    """Return how many microbatches an evaluation has: as large as those of training."""
    per_microbatch = -(-job.train.global_batch // job.train.microbatches)
    return max(1, -(-job.train.evaluation.samples // per_microbatch))


def _plan(
    job: JobConfig, step: int, samples: tuple[SampleSize, ...], microbatches: int, lr: float
) -> StepPlan:
    assignment = {name: assign(job, name, len(samples), microbatches) for name in job.modules}
    return StepPlan(step, samples, assignment, lr)


def assign(job: JobConfig, module: str, num_samples: int, microbatches: int) -> Assignment:
    """Return which samples each microbatch of each dp rank of a module holds."""
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
