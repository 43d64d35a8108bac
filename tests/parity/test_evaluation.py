"""Every layout scores and decodes held-out samples as one process does."""

import pytest

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.source import open_source
from disagg_train.driver import loop
from disagg_train.driver.evaluation import fold_evaluation
from disagg_train.driver.parity import one_process
from disagg_train.driver.step_planner import evaluation_plan
from disagg_train.metrics.records import Evaluation
from tests.parity.jobs import Degrees, small_job

pytestmark = pytest.mark.ray

_CASES = [
    ({"dp": 2}, {"cp": 2, "tp": 2, "sp": True}, {}),
    ({"pp": 2}, {"pp": 2, "tp": 2}, {}),
    ({"cp": 2}, {"pp": 2, "cp": 2}, {"packed": False}),
    ({"dp": 2}, {"pp": 2, "vpp": 2}, {"num_layers": 4, "microbatches": 2}),
    ({"dp": 1}, {"ep": 2, "dp": 2}, {"num_experts": 4}),
]


def _evaluated(pool: ActorPool, job: JobConfig) -> Evaluation:
    source = open_source(job)
    plan = evaluation_plan(job, checked_sizes(source, job, "evaluation"))
    with pool.session(job) as session:
        reports = loop.evaluate(session.groups, plan, job.deadlines.step_s)
    return fold_evaluation(source, plan, reports, 0)


@pytest.mark.parametrize(("vision", "language", "more"), _CASES)
def test_loss_and_answers_are_those_of_one_process(
    pool: ActorPool, vision: Degrees, language: Degrees, more: dict[str, object]
) -> None:
    job = small_job(vision, language, evaluation={"samples": 9}, **more)
    found, expected = _evaluated(pool, job), _evaluated(pool, one_process(job))
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.answers == expected.answers
