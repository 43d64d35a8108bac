"""Is it the same training? Runs a job's layouts and one process on the same data."""

from collections.abc import Sequence
from typing import Any

from actors.group import results
from actors.pool import ActorPool
from actors.session import Session
from disagg_train.config.job import JobConfig
from disagg_train.driver import loop
from disagg_train.driver.commitment import BadSamples
from disagg_train.driver.parity import Observation, Parity, compare, one_process
from disagg_train.driver.plans import RecordedPlans, TrainingPlans, training_batches
from disagg_train.errors import ConfigError
from disagg_train.metrics.records import StepRecord
from disagg_train.planner.step_plan import SampleSize
from disagg_train.training import committer_of

Batch = tuple[SampleSize, ...]


def check_verifiable(job: JobConfig) -> None:
    """Refuse a job whose layouts may differ by more than the comparison allows.

    Raises:
        ConfigError: it does not train in fp32.
    """
    if (precision := job.train.precision) != "fp32":
        raise ConfigError(
            f"train.precision={precision} rounds differently on every layout; "
            f"verify with --set train.precision=fp32"
        )


def verify(
    job: JobConfig, sizes: Sequence[SampleSize], bad: BadSamples, steps: int, pool: ActorPool
) -> Parity:
    """Train the job's layouts and one process from the same seed and data, and compare.

    Args:
        job: the job.
        sizes: of all training samples.
        bad: samples that were taken out.
        steps: training steps of both.
        pool: warm actors, as many as the job has ranks.
    """
    batches = training_batches(job, sizes)
    found, trained_on = _observe(job, TrainingPlans(job, batches, steps), bad, pool)
    alone = one_process(job)
    same = TrainingPlans(alone, iter(trained_on), steps)
    return compare(found, _observe(alone, same, bad, pool)[0])


def _observe(
    job: JobConfig, plans: TrainingPlans, bad: BadSamples, pool: ActorPool
) -> tuple[Observation, list[Batch]]:
    """Return what a run shows, and the samples of its steps."""
    records: list[StepRecord] = []
    first_gradients: dict[str, Any] = {}
    recorded = RecordedPlans(plans)
    with pool.session(job) as session:
        committer, deadline_s = committer_of(session, bad), job.deadlines.step_s
        steps = loop.train(session.groups, recorded, deadline_s, lambda step: step == 0, committer)
        for record, _ in steps:
            records.append(record)
            first_gradients = first_gradients or _collect(session, "gradients")
        weights = _collect(session, "weights")
    losses, norms = [r.loss for r in records], [r.grad_norm for r in records]
    return Observation(losses, norms, first_gradients, weights), recorded.batches


def _collect(session: Session, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for group in session.groups:
        future = group.weights() if what == "weights" else group.gradients()
        for part in results(future, session.job.deadlines.step_s, group.name, what):
            found.update(part)
    return found
