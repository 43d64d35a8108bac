"""A boundary that fails ends in time with an error that names the culprit, and can be rebuilt.

Every test goes on to train in the surviving processes, as one process would have trained.
The ranks: 0 and 1 are the encoder's (dp 2), 2 and 3 the language model's (tp 2).
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.pool import ActorPool
from disagg_train.config.job import JobConfig
from disagg_train.driver import loop
from disagg_train.driver.parity import one_process
from disagg_train.errors import PlanError, RankError
from disagg_train.metrics.records import StepRecord
from tests.ray.crew import Crew, Fault, plans_of, wait_until
from tests.ray.jobs import job_with

pytestmark = [pytest.mark.ray, pytest.mark.slow]

JOB = job_with("train.steps=2")
DEADLINE_S, SLACK_S = 6.0, 30.0
IMPATIENT = job_with("train.steps=2", f"deadlines.exchange_s={DEADLINE_S}")
PLACES = {("encoders", 0): 0, ("encoders", 1): 1, ("language", 0): 2, ("language", 1): 3}


@pytest.fixture(scope="module")
def reference(pool: ActorPool) -> list[StepRecord]:
    job = one_process(JOB)
    with pool.session(job) as session:
        steps = loop.train(session.groups, plans_of(job), job.deadlines.step_s)
        return [record for record, _ in steps]


@pytest.fixture
def crew(pool: ActorPool) -> Iterator[Crew]:
    crew = Crew(pool, JOB)
    crew.set_up(JOB)  # imports, so that the short deadlines that follow are enough
    yield crew
    crew.close()


@pytest.fixture
def fault(tmp_path: Path) -> Iterator[Fault]:
    fault = Fault(tmp_path)
    yield fault
    fault.let_go()


def assert_trains_again(crew: Crew, reference: list[StepRecord], job: JobConfig = JOB) -> None:
    crew.set_up(job)
    found = crew.train(job)
    assert [r.loss for r in found] == pytest.approx([r.loss for r in reference], rel=1e-5)
    norms = [r.grad_norm for r in reference]
    assert [r.grad_norm for r in found] == pytest.approx(norms, rel=1e-4)


def current_op(crew: Crew, place: int) -> str:
    return str(ray.get(crew.actors[place].current_op.remote(), timeout=20))


def test_an_actor_killed_while_its_peer_waits_for_it_is_named(
    crew: Crew, fault: Fault, reference: list[StepRecord]
) -> None:
    before = crew.process_ids()
    fault.at(crew.actors[1], "forward vision 1")
    running = [group.train(plans_of(JOB)[0], None) for group in crew.groups]
    fault.wait()
    receive = "recv_forward vision->language 1"
    wait_until(lambda: current_op(crew, 3) == receive, "the peer did not come to its receive")
    begin = time.monotonic()
    os.kill(before[1], signal.SIGKILL)
    with pytest.raises(RankError, match="the actor died") as caught:
        loop.collect(running, JOB.deadlines.step_s)
    assert time.monotonic() - begin < SLACK_S < JOB.deadlines.exchange_s
    assert (caught.value.group, caught.value.rank) == ("encoders", 1)
    crew.replace("encoders", 1)
    assert_trains_again(crew, reference)
    after = crew.process_ids()
    assert [after[place] for place in (0, 2, 3)] == [before[place] for place in (0, 2, 3)]
    assert after[1] != before[1]


@pytest.mark.parametrize(("group", "rank"), [("encoders", 1), ("encoders", 0), ("language", 1)])
def test_a_rank_that_never_arrives_at_set_up_is_named(
    crew: Crew, fault: Fault, reference: list[StepRecord], group: str, rank: int
) -> None:
    before = crew.process_ids()
    fault.now(crew.actors[PLACES[group, rank]])
    fault.wait()
    begin = time.monotonic()
    errors = crew.errors_of_set_up(IMPATIENT, DEADLINE_S + SLACK_S)
    assert time.monotonic() - begin < DEADLINE_S + SLACK_S
    assert set(errors) == {"encoders", "language"}, "every group gives up"
    absent = f"[{PLACES[group, rank]}] did not arrive"
    assert any(absent in str(error) for error in errors.values())
    fault.let_go()
    assert_trains_again(crew, reference)
    assert crew.process_ids() == before


def test_ranks_with_another_plan_are_named_and_the_job_goes_on(
    crew: Crew, reference: list[StepRecord]
) -> None:
    before = crew.process_ids()
    plan, other = plans_of(JOB)[0], plans_of(job_with("train.microbatches=4"))[0]
    running = [
        crew.by_name["encoders"].train(plan, None),
        crew.by_name["language"].train(other, None),
    ]
    begin = time.monotonic()
    with pytest.raises(PlanError, match=r"the ranks \[2, 3\] hold another plan than rank 0"):
        loop.collect(running, JOB.deadlines.step_s)
    assert time.monotonic() - begin < SLACK_S
    assert_trains_again(crew, reference)
    assert crew.process_ids() == before


def test_who_waits_for_a_hung_rank_names_the_boundary_the_microbatch_and_the_peer(
    crew: Crew, fault: Fault, reference: list[StepRecord]
) -> None:
    crew.set_up(IMPATIENT)
    fault.at(crew.actors[1], "forward vision 1")
    plan = plans_of(IMPATIENT)[0]
    running = [group.train(plan, None) for group in crew.groups]
    waiting = dict(zip(crew.by_name, running, strict=True))["language"]
    message = str(waiting.exception(timeout=DEADLINE_S + SLACK_S))
    assert "vision->language/forward" in message
    assert "microbatch 1" in message
    assert "receive from rank 1" in message
    fault.let_go()
    assert_trains_again(crew, reference)


def test_a_job_is_set_up_twice_under_one_store_without_tearing_it_down(
    crew: Crew, reference: list[StepRecord]
) -> None:
    """The second set-up finds all names of the first in the store, and its connections open."""
    for _ in range(2):
        assert_trains_again(crew, reference)
