"""The step's bars of DESIGN, section 9: what Ray and the driver cost, and Megatron's pipeline."""

import pytest

from disagg_train.bench.jobs import disjoint_job
from disagg_train.bench.pipeline import PipelineResult, run_pipeline
from disagg_train.bench.step import StepResult, run_step

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]

_BLOCKS = 20


@pytest.fixture(scope="module")
def disjoint() -> StepResult:
    return run_step(disjoint_job(), _BLOCKS)


@pytest.fixture(scope="module")
def pipeline() -> PipelineResult:
    return run_pipeline(_BLOCKS)


@pytest.fixture(params=["disjoint", "pipeline"])
def step(request: pytest.FixtureRequest) -> StepResult:
    measured = request.getfixturevalue(request.param)
    return measured.step if isinstance(measured, PipelineResult) else measured


def test_the_step_is_measured_in_enough_blocks(disjoint: StepResult, keep) -> None:
    keep("step", disjoint.as_dict())
    assert disjoint.blocks >= 20


def test_the_pipeline_is_measured_in_enough_blocks(pipeline: PipelineResult, keep) -> None:
    keep("pipeline", pipeline.as_dict())
    assert pipeline.step.blocks >= 20


def test_steps_are_long_enough_to_compare(step: StepResult) -> None:
    assert step.torchrun_ms >= 300


def test_ray_costs_no_more_than_three_percent(step: StepResult) -> None:
    low, _ = step.ratio_interval_95
    assert low <= 1.03, step


def test_ranks_are_idle_between_ops_for_no_more_than_three_percent(step: StepResult) -> None:
    assert step.dead_time_fraction <= 0.03, step


def test_our_pipeline_is_no_more_than_five_percent_slower_than_megatrons(
    pipeline: PipelineResult,
) -> None:
    low, _ = pipeline.ratio_megatron_interval_95
    assert pipeline.megatron_ms >= 300
    assert low <= 1.05, pipeline
