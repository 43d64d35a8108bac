"""A job's op lists."""

from pathlib import Path

from disagg_train.boundary.of_job import job_graph
from disagg_train.config.job import JobConfig, TrainConfig
from disagg_train.errors import ConfigError, PlanError
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.file import load_schedule
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.language import PIPELINES
from disagg_train.schedule.ops import Schedule


def job_schedules(job: JobConfig) -> tuple[Schedule, Schedule]:
    """Return the checked op lists of a training step and of an evaluation."""
    graph = job_graph(job)
    training = checked_training_schedule(job, graph)
    evaluation = evaluation_schedule(graph, evaluation_microbatches(job))
    check(evaluation, graph)
    return training, evaluation


def evaluation_microbatches(job: JobConfig) -> int:
    """Return how many microbatches an evaluation has: as large as those of training."""
    per_microbatch = -(-job.train.global_batch // job.train.microbatches)
    return max(1, -(-job.train.evaluation.samples // per_microbatch))


def checked_training_schedule(job: JobConfig, graph: StageGraph) -> Schedule:
    """Return the checked op lists of a training step: of the schedule or file that is named.

    Raises:
        ConfigError: there is no such schedule, or it has another number of microbatches.
        PlanError: it is not one for this job.
    """
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
