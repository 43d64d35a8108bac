"""How a run goes on after failures, and when it ends instead."""

import pytest

from disagg_train.config.survival import RecoveryConfig
from disagg_train.driver.failure import Failure
from disagg_train.driver.recovery import Restart, RestartPolicy
from disagg_train.errors import BoundaryError, DisaggTrainError, RankError


def _failure(step: int, rank: int = 0) -> Failure:
    return Failure(RankError("the actor died", "llm", rank, cause="died"), step, ("llm",), ())


def test_the_failed_group_restarts_and_pauses_double_until_a_step_is_done() -> None:
    policy = RestartPolicy(RecoveryConfig(backoff_s=2.0))
    pauses = [policy.after(_failure(step)).pause_s for step in range(7)]
    assert pauses == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    policy.completed(7)
    assert policy.after(_failure(8)) == Restart("group", 2.0)
    assert policy.num_restarts == 8


def test_a_group_that_could_not_be_saved_takes_the_job_along() -> None:
    policy = RestartPolicy(RecoveryConfig())
    kinds = [policy.after(_failure(3, rank)).kind for rank in range(3)]
    assert kinds == ["group", "job", "job"]
    policy.completed(3)
    assert policy.after(_failure(4)).kind == "group"


def test_a_job_can_always_restart_as_a_whole() -> None:
    assert RestartPolicy(RecoveryConfig(restart="job")).after(_failure(3)).kind == "job"


def test_never_is_never() -> None:
    policy = RestartPolicy(RecoveryConfig(restart="never"))
    with pytest.raises(RankError, match="'llm' rank 0: the actor died; .*restart is 'never'"):
        policy.after(_failure(3))


def test_the_same_failure_of_the_same_step_ends_the_run() -> None:
    policy = RestartPolicy(RecoveryConfig())
    policy.after(_failure(3))
    policy.after(_failure(3, rank=1))
    policy.after(_failure(4))
    policy.completed(2)
    with pytest.raises(RankError, match="step 3 failed twice the same way"):
        policy.after(_failure(3))


def test_restarts_are_limited() -> None:
    policy = RestartPolicy(RecoveryConfig(max_restarts=2))
    for step in (1, 2):
        policy.after(_failure(step))
        policy.completed(step)
    with pytest.raises(RankError, match="max_restarts=2 are used up") as caught:
        policy.after(_failure(3))
    assert caught.value.cause == "died"


def test_any_other_error_ends_with_its_own_words() -> None:
    policy = RestartPolicy(RecoveryConfig(max_restarts=0))
    with pytest.raises(DisaggTrainError, match=r"BoundaryError: late; .*max_restarts=0"):
        policy.after(Failure(BoundaryError("late"), 1, (), ()))
