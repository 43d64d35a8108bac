"""A group that fails is made anew; the others keep their processes, and the training its path.

The ranks: 0 and 1 are the encoder's (dp 2), 2 and 3 the language model's (tp 2).
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from actors.group import results
from actors.pool import ActorPool
from actors.session import Session
from disagg_train.config.job import JobConfig
from disagg_train.driver import loop
from disagg_train.driver.failure import Failure
from disagg_train.engine.setup import StateSource
from disagg_train.errors import RankError
from disagg_train.metrics.records import SnapshotOrder, StepRecord, Stored
from tests.ray.crew import Fault, plans_of
from tests.ray.jobs import job_with
from tests.ray.programs import run_program

pytestmark = pytest.mark.ray

JOB = job_with("train.steps=5")
IMPATIENT = job_with("train.steps=5", "deadlines.exchange_s=5")
COPIED, FAILS_IN = 2, 3
WAIT_S = 60.0


@pytest.fixture(scope="module")
def undisturbed(pool: ActorPool) -> list[StepRecord]:
    with pool.session(JOB) as session:
        return train(session, 0, 5)


@pytest.fixture
def fault(tmp_path: Path) -> Iterator[Fault]:
    fault = Fault(tmp_path)
    yield fault
    fault.let_go()


def train(session: Session, begin: int, end: int) -> list[StepRecord]:
    plans, deadline_s = plans_of(session.job)[begin:end], session.job.deadlines.step_s
    return [record for record, _ in loop.train(session.groups, plans, deadline_s)]


def copy_to_vaults(session: Session, steps_done: int) -> list[Stored]:
    order = SnapshotOrder(steps_done, to_vaults=True)
    asked = [group.snapshot(order) for group in session.groups]
    stored = [group.stored(order) for group in session.groups]
    for future in asked:
        results(future, WAIT_S, "all", "snapshot")
    found = [each for future in stored for each in results(future, WAIT_S, "all", "storing")]
    assert [each.copy_error for each in found] == [""] * len(found)
    return found


def newest_copy(session: Session) -> StateSource:
    copy = session.newest_copy()
    assert copy is not None, "no vault answered, or not all ranks' copies are there"
    return copy


def process_ids(session: Session) -> dict[tuple[str, int], int]:
    return {
        (group.name, rank): ray.get(actor.home.remote(), timeout=WAIT_S).pid
        for group in session.groups
        for rank, actor in enumerate(group.actors)
    }


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def actor_of(session: Session, group: str, rank: int) -> object:
    return next(each for each in session.groups if each.name == group).actors[rank]


def fail(session: Session, step: int = FAILS_IN) -> Failure:
    with pytest.raises(RankError) as caught:
        train(session, step, step + 1)
    failure = session.diagnose(caught.value, step)
    print(failure.text)
    return failure


def go_on(session: Session, failure: Failure, job: JobConfig) -> list[StepRecord]:
    source = newest_copy(session)
    assert source.steps_done == COPIED
    session.renew(job, failure.groups, source)
    return train(session, source.steps_done, 5)


def losses(records: list[StepRecord]) -> list[tuple[float, float]]:
    return [(record.loss, record.grad_norm) for record in records]


@pytest.mark.parametrize("group", ["encoders", pytest.param("language", marks=pytest.mark.slow)])
def test_a_killed_group_is_made_anew_and_the_training_equals_the_undisturbed_one(
    pool: ActorPool, undisturbed: list[StepRecord], group: str
) -> None:
    with pool.session(JOB, keeps_copies=True) as session:
        train(session, 0, COPIED)
        stored = copy_to_vaults(session, COPIED)
        assert [each.error for each in stored] == [""] * 4
        train(session, COPIED, FAILS_IN)
        before = process_ids(session)
        os.kill(before[group, 1], signal.SIGKILL)
        failure = fail(session)
        assert failure.groups == (group,)
        assert isinstance(failure.error, RankError)
        assert (failure.error.group, failure.error.rank, failure.error.cause) == (group, 1, "died")
        found = go_on(session, failure, JOB)
        after = process_ids(session)
    assert losses(found) == losses(undisturbed[COPIED:])
    for place, pid in before.items():
        assert (after[place] == pid) == (place[0] != group)


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_hung_rank_is_named_with_its_op_and_ended(
    pool: ActorPool, undisturbed: list[StepRecord], fault: Fault, is_stopped: bool
) -> None:
    with pool.session(IMPATIENT, keeps_copies=True) as session:
        train(session, 0, COPIED)
        copy_to_vaults(session, COPIED)
        pid = process_ids(session)["encoders", 1]
        fault.at(actor_of(session, "encoders", 1), "forward vision 1")
        running = [g.train(plans_of(IMPATIENT)[COPIED], None) for g in session.groups]
        fault.wait()
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RankError) as caught:
            loop.collect(running, WAIT_S)
        failure = session.diagnose(caught.value, COPIED)
        assert failure.groups == ("encoders",)
        hung = failure.error
        assert isinstance(hung, RankError)
        assert (hung.group, hung.rank, hung.cause) == ("encoders", 1, "hung")
        assert hung.op == "forward vision 1"
        of_rank = {(each.group, each.rank): each for each in failure.ranks}
        assert of_rank["encoders", 1].condition == ("silent" if is_stopped else "working")
        assert "stop_then_do" in of_rank["encoders", 1].stack
        assert of_rank["language", 0].condition == "waiting"
        found = go_on(session, failure, IMPATIENT)
        assert not is_alive(pid)
    assert losses(found) == losses(undisturbed[COPIED:])


def test_all_groups_go_back_without_a_new_actor(
    pool: ActorPool, undisturbed: list[StepRecord]
) -> None:
    with pool.session(JOB, keeps_copies=True) as session:
        train(session, 0, COPIED)
        copy_to_vaults(session, COPIED)
        before = process_ids(session)
        train(session, COPIED, 4)
        session.renew(JOB, (), newest_copy(session))
        assert process_ids(session) == before
        found = train(session, COPIED, 5)
    assert losses(found) == losses(undisturbed[COPIED:])


@pytest.mark.soak
@pytest.mark.timeout(500)
def test_a_lost_node_is_replaced_or_its_group_shrinks() -> None:
    run_program("tests.ray.node_loss", timeout_s=450)
