"""The step's bars of DESIGN, section 9: what Ray and the driver cost."""

import pytest

from disagg_train.bench.step import StepResult, bench_job, run_step

pytestmark = pytest.mark.bench

_BLOCKS = 20


@pytest.fixture(scope="module")
def measured() -> StepResult:
    return run_step(bench_job(), _BLOCKS)


def test_steps_are_long_enough_to_compare(measured: StepResult, keep) -> None:
    keep("step", measured.as_dict())
    assert measured.blocks >= 20
    assert measured.torchrun_ms >= 300


def test_ray_costs_no_more_than_three_percent(measured: StepResult) -> None:
    low, _ = measured.ratio_interval_95
    assert low <= 1.03, measured


def test_ranks_are_idle_between_ops_for_no_more_than_three_percent(measured: StepResult) -> None:
    assert measured.dead_time_fraction <= 0.03, measured
