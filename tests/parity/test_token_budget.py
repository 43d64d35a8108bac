"""Steps of as many samples as fit a token budget train the same model as one process."""

import pytest

from actors.pool import ActorPool
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver.plans import training_batches, training_plans
from disagg_train.trainer import Trainer
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_BUDGET = 48
_LAYOUTS = [
    ({"dp": 2}, {"dp": 2}),
    pytest.param({"dp": 1}, {"cp": 2, "tp": 2, "sp": True}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("vision", "language"), _LAYOUTS)
def test_a_token_budget_trains_the_same_model(
    vision: Degrees, language: Degrees, pool: ActorPool
) -> None:
    job = small_job(vision, language, tokens_per_microbatch=_BUDGET, global_batch=40, steps=4)
    sizes = checked_sizes(open_source(job), job, "train")
    counts = {len(plan.samples) for plan in training_plans(job, training_batches(job, sizes))}
    assert len(counts) > 1 and max(counts) < 40
    parity = Trainer(job).verify(4, pool)
    assert parity.ok, parity
