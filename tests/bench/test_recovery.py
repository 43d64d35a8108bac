"""A group comes back sooner than a job, and the others' processes never go."""

import pytest

from disagg_train.bench.recovery import RecoveryResult, run_recovery

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

_FAULTS, _LAYERS = 2, 1


@pytest.fixture(scope="module")
def measured() -> RecoveryResult:
    return run_recovery(_FAULTS, _LAYERS)


def test_a_group_recovers_sooner_than_a_job(measured: RecoveryResult, keep) -> None:
    keep("recovery", measured.as_dict())
    low, _ = measured.ratio_interval_95
    assert low < 1.0, measured


def test_survivors_keep_their_processes(measured: RecoveryResult) -> None:
    assert {each.kept_processes for each in measured.by_group} == {measured.survivors}


def test_a_job_that_restarts_keeps_no_process(measured: RecoveryResult) -> None:
    assert {each.kept_processes for each in measured.by_job} == {0}
