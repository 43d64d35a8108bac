"""What keeping the state may cost: a tenth of a synchronous save, 3% of the steps."""

import pytest

from disagg_train.bench.checkpoint import CheckpointResult, run_checkpoint

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

_BLOCKS, _LAYERS = 3, 1


@pytest.fixture(scope="module")
def measured() -> CheckpointResult:
    return run_checkpoint(_BLOCKS, _LAYERS)


def test_training_stalls_for_a_tenth_of_a_synchronous_save(
    measured: CheckpointResult, keep
) -> None:
    keep("checkpoint", measured.as_dict())
    low, _ = measured.saves.times.ratio_interval_95
    assert low <= 0.10, measured.saves


def test_copies_in_memory_cost_no_more_than_they_may(measured: CheckpointResult) -> None:
    copies = measured.copies
    low, _ = copies.times.ratio_interval_95
    assert copies.allowed == 0.03
    assert low <= 1.0 + copies.allowed, copies


def test_copies_are_made_in_the_measured_runs(measured: CheckpointResult) -> None:
    assert measured.copies.copies_per_run >= 0.5, measured.copies
