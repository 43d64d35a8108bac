"""Sample ids -> step plans."""

from collections.abc import Iterator, Sequence

from disagg_train.config.job import JobConfig
from disagg_train.driver.learning_rate import learning_rate
from disagg_train.planner.balance import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan


def training_plans(
    job: JobConfig, batches: Iterator[tuple[SampleSize, ...]]
) -> Iterator[StepPlan]:
    """Yield the plan of every training step."""
    for step in range(job.train.steps):
        yield _plan(job, step, next(batches), job.train.microbatches, learning_rate(job.train, step))


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
    assignment = {
        name: in_order(len(samples), microbatches, module.parallel.dp)
        for name, module in job.modules.items()
    }
    return StepPlan(step, samples, assignment, lr)
