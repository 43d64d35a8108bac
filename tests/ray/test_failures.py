"""A rank that dies, or a sample that is bad, ends the step with an error that names it."""

import os
import signal
from pathlib import Path

import pytest
import ray

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.plans import training_plans
from disagg_train.errors import DataError, RankError
from disagg_train.metrics.records import StepRecord
from tests.ray.jobs import job_with

pytestmark = pytest.mark.ray


def _train(session: Session, job: JobConfig) -> list[StepRecord]:
    sizes = checked_sizes(open_source(job), job, "train")
    plans = training_plans(job, batches(sizes, job.seed, job.train.global_batch))
    return [record for record, _ in loop.train(session.groups, plans, job.deadlines.step_s)]


def test_a_killed_rank_is_named_with_its_group(pool: ActorPool) -> None:
    job = job_with("train.steps=100000", "deadlines.exchange_s=60")
    with pytest.raises(RankError) as caught, pool.session(job) as session:
        victim = session.groups[0].actors[1]
        os.kill(ray.get(victim.home.remote()).pid, signal.SIGKILL)
        _train(session, job)
    assert (caught.value.group, caught.value.rank) == ("encoders", 1)
    assert "died" in str(caught.value)


def test_a_rank_that_dies_while_loading_a_sample_is_named(pool: ActorPool) -> None:
    job = job_with("deadlines.exchange_s=60", source="DeadlySource")
    with pytest.raises(RankError, match="the actor died"), pool.session(job) as session:
        _train(session, job)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(
            "LyingSource",
            r"sample 5 has \d+ tokens where its index says \d+",
            marks=pytest.mark.slow,
        ),
        ("BrokenFileSource", "sample 5: its file ends too early; remove it or repair it"),
    ],
)
def test_a_bad_sample_is_named(pool: ActorPool, source: str, message: str) -> None:
    job = job_with("deadlines.exchange_s=60", source=source)
    with pytest.raises(DataError, match=message), pool.session(job) as session:
        _train(session, job)


def test_secrets_that_only_a_rank_knows_are_masked(pool: ActorPool, tmp_path: Path) -> None:
    job = job_with("deadlines.exchange_s=60", source="SecretiveSource")
    with pytest.raises(RankError) as caught, pool.session(job, logs=tmp_path) as session:
        actors = [actor for group in session.groups for actor in group.actors]
        try:
            ray.get([actor.__ray_call__.remote(_learn, "open-sesame") for actor in actors])
            _train(session, job)
        finally:
            ray.get([actor.__ray_call__.remote(_learn, "") for actor in actors])
    logs = "".join(path.read_text() for path in tmp_path.iterdir())
    for text in (str(caught.value), logs):
        assert "no access with ***" in text
        assert "open-sesame" not in text


def _learn(actor: object, password: str) -> None:
    del actor
    os.environ["DT_TEST_PASSWORD"] = password


def test_a_norm_that_is_not_finite_makes_all_modules_skip_the_step(pool: ActorPool) -> None:
    job = job_with("train.steps=3", "train.global_batch=22", source="NanSource")
    with pool.session(job) as session:
        before = _weights(session)
        records = _train(session, job)
        after = _weights(session)
    assert [record.skipped for record in records] == [True, True, True]
    assert all((before[name] == after[name]).all() for name in before)


def _weights(session: Session) -> dict[str, object]:
    return {
        k: v
        for group in session.groups
        for part in group.weights().result(60)
        for k, v in part.items()
    }


def test_the_pool_is_whole_again_after_a_death(pool: ActorPool) -> None:
    job = job_with("train.steps=2")
    with pool.session(job) as session:
        assert len(_train(session, job)) == 2
