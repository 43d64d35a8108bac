"""Frozen modules: the same training on every layout, and weights that stay as they are."""

from itertools import islice

import numpy as np
import pytest
from numpy.typing import NDArray

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.config.job import JobConfig
from disagg_train.config.load import load_job
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.plans import training_plans
from disagg_train.trainer import Trainer
from tests.parity.jobs import small_job

pytestmark = pytest.mark.ray

_VISION, _LANGUAGE = "modules.vision.freeze=true", "modules.language.freeze=true"
_PROJECTOR = "modules.vision.projector.freeze=false"


@pytest.mark.parametrize("colocated", [False, True], ids=["disjoint", "colocated"])
@pytest.mark.parametrize(
    ("overrides", "still", "moving"),
    [
        ([_VISION], ["vision.encoder", "vision.projector"], ["language"]),
        ([_VISION, _PROJECTOR], ["vision.encoder"], ["vision.projector", "language"]),
        ([_VISION, _PROJECTOR, _LANGUAGE], ["vision.encoder", "language"], ["vision.projector"]),
        ([_LANGUAGE], ["language"], ["vision.encoder", "vision.projector"]),
    ],
    ids=["encoder", "encoder but not its projector", "all but the projector", "llm"],
)
def test_frozen_parts_stay_and_the_rest_trains_as_in_one_process(
    pool: ActorPool, overrides: list[str], still: list[str], moving: list[str], colocated: bool
) -> None:
    job = small_job({"dp": 2}, {"tp": 2, "sp": True}, colocated=colocated)
    trainer = Trainer(load_job(job, overrides))
    parity = trainer.verify(2, pool)
    assert parity.ok, parity
    changed = _changed_weights(trainer.job, pool)
    assert not [name for name in changed if name.startswith(tuple(still))]
    assert all(any(name.startswith(part) for name in changed) for part in moving)


def _changed_weights(job: JobConfig, pool: ActorPool) -> list[str]:
    """Return the names of the weights that one step changed."""
    sizes = checked_sizes(open_source(job), job, "train")
    plans = islice(training_plans(job, batches(sizes, job.seed, job.train.global_batch)), 1)
    with pool.session(job) as session:
        before = _weights(session)
        list(loop.train(session.groups, plans, job.deadlines.step_s))
        after = _weights(session)
    return [name for name in before if (before[name] != after[name]).any()]


def _weights(session: Session) -> dict[str, NDArray[np.float32]]:
    found = {}
    for group in session.groups:
        for part in group.weights().result(timeout=60):
            found.update(part)
    return found
