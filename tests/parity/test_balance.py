"""Balanced steps, with the LLM's work put off, train the same model as one process."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pytest

from actors.pool import ActorPool
from disagg_train.bench.torchrun import job_plans
from disagg_train.config.job import LANGUAGE, JobConfig
from disagg_train.config.load import load_job
from disagg_train.planner.seats import Seats
from disagg_train.planner.step_plan import StepPlan
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_STEPS = 6
_BALANCED = {
    "steps": _STEPS,
    "balance": "both",
    "deferral_span": 1,
    "global_batch": 40,
    "microbatches": 4,
}


_ANSWERS_OF_ANY_LENGTH = [
    "data.kind=tests.parity.sources:Interleaved",
    "data.options={samples: 160, most_targets: 40}",
]
"""A fifth of the samples are texts alone."""


@dataclass(frozen=True)
class Case:
    """A job whose steps are balanced."""

    name: str
    vision: Degrees
    language: Degrees
    more: dict[str, Any] = field(default_factory=dict)
    colocated: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def job(self) -> JobConfig:
        job = small_job(self.vision, self.language, self.colocated, **(_BALANCED | self.more))
        return load_job(job, _ANSWERS_OF_ANY_LENGTH)


_CASES = [
    pytest.param(
        Case("disjoint, with texts alone", {}, {"pp": 2}, {"global_batch": 30}),
        marks=pytest.mark.slow,
    ),
    Case("two encoders, disjoint", {}, {"pp": 2}, {"audio": {}}),
    Case("colocated, windows of 2", {"dp": 2}, {"pp": 2}, {"window": 2}, colocated=True),
    pytest.param(
        Case("two encoders, one colocated", {"dp": 2}, {"pp": 2}, {"audio": {}}, colocated=True),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        Case("padded", {}, {"dp": 2}, {"packed": False, "global_batch": 60}),
        marks=pytest.mark.slow,
    ),
    pytest.param(
        Case("a token budget", {}, {"dp": 1}, {"tokens_per_microbatch": 300, "global_batch": 60}),
        marks=pytest.mark.slow,
    ),
]


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_balanced_steps_train_the_same_model(pool: ActorPool, case: Case) -> None:
    parity = Trainer(case.job).verify(_STEPS, pool)
    assert parity.ok, parity


@pytest.mark.parametrize("case", _CASES, ids=str)
def test_the_steps_that_are_verified_do_put_samples_off(case: Case) -> None:
    plans = list(islice(job_plans(case.job), _STEPS))
    assert any(late for plan in plans for late in _lateness(plan, case.job))


def _lateness(plan: StepPlan, job: JobConfig) -> Iterator[int]:
    """Yield by how many microbatches the LLM puts each encoded sample off."""
    language_S = Seats.of(plan.assignment[LANGUAGE]).microbatch_S
    for encoder in job.encoders:
        encoded_S = Seats.of(plan.assignment[encoder]).microbatch_S
        for i, sample in enumerate(plan.samples):
            if sample.tokens(encoder):
                yield int(language_S[i] - encoded_S[i])
