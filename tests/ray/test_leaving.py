"""Ranks that leave a job keep nothing of it: the same processes serve many, and so do survivors."""

import contextlib
import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from tests.parity import saving
from tests.parity.jobs import small_job
from tests.ray.test_recovery import (
    COPIED,
    JOB,
    copy_to_vaults,
    fail,
    newest_copy,
    process_ids,
    train,
)

pytestmark = pytest.mark.ray

_WAIT_S = 60.0


@pytest.mark.parametrize(
    "job",
    [
        pytest.param(small_job({"dp": 2}, {"ep": 2, "dp": 2}, num_experts=4), id="experts"),
        pytest.param(small_job({"dp": 2}, {"pp": 2}, colocated=True), id="colocated pipeline"),
    ],
)
def test_models_and_threads_go_with_the_job(pool: ActorPool, job: JobConfig) -> None:
    with pool.session(job) as session:
        saving.train(session, saving.plans_of(job, 1))
        actors = [actor for group in session.groups for actor in group.actors]
    left = ray.get([actor.__ray_call__.remote(_left) for actor in actors], timeout=_WAIT_S)
    assert left == [(0, 0)] * len(actors)


def test_the_collector_does_not_look_at_imports_again(pool: ActorPool) -> None:
    with pool.session(small_job({}, {})) as session:
        actors = [actor for group in session.groups for actor in group.actors]
        counts = ray.get([actor.__ray_call__.remote(_counts) for actor in actors], timeout=_WAIT_S)
    assert all(looked_at < spared / 2 for looked_at, spared in counts), counts


def test_survivors_of_a_failure_hold_one_model(pool: ActorPool) -> None:
    with pool.session(JOB, keeps_copies=True) as session:
        train(session, 0, COPIED)
        copy_to_vaults(session, COPIED)
        os.kill(process_ids(session)["encoders", 1], signal.SIGKILL)
        failure = fail(session, COPIED)
        session.renew(session.job, failure.groups, newest_copy(session))
        actors = session.groups[1].actors
        held = ray.get([actor.__ray_call__.remote(_wrapped) for actor in actors], timeout=_WAIT_S)
    assert held == [1] * len(actors)


def _counts(actor: object) -> tuple[int, int]:
    """Return how many objects Python's collector looks at in a rank, and how many it does not."""
    del actor
    return len(gc.get_objects()), gc.get_freeze_count()


def _wrapped(actor: object) -> int:
    """Return how many models with buffers for gradients a rank's process holds."""
    from megatron.core.distributed import DistributedDataParallel

    del actor
    return sum(isinstance(found, DistributedDataParallel) for found in gc.get_objects())


def _left(actor: object) -> tuple[int, int]:
    """Return how many models a rank's process still holds, and how many threads of groups."""
    from torch import nn

    del actor
    modules = [found for found in gc.get_objects() if isinstance(found, nn.Module)]
    with_weights = [module for module in modules if any(True for _ in module.parameters())]
    return len(with_weights), sum("gloo" in name for name in _thread_names())


def _thread_names() -> Iterator[str]:
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it ended just now
            yield path.read_text()
