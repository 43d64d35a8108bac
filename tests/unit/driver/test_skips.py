"""Skipped steps: some in a row are allowed, one more names the samples."""

import pytest

from disagg_train.driver.skips import SkippedSteps
from disagg_train.errors import DataError
from disagg_train.metrics.records import StepRecord
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan


def _note(skips: SkippedSteps, step: int, skipped: bool = True, samples: int = 2) -> None:
    sizes = tuple(SampleSize(100 * step + i, 5, 2) for i in range(samples))
    plan = StepPlan(step, sizes, {"language": in_order(samples, 1, 1)})
    skips.note(StepRecord(step, 1.0, 1.0, 0.1, 1, 1, 1.0, skipped, 0, 0, {}), plan)


def test_one_skip_too_many_names_the_step_and_its_samples() -> None:
    skips = SkippedSteps(2)
    _note(skips, 4)
    _note(skips, 5)
    with pytest.raises(DataError, match=r"steps 4\.\.6.* 3 in a row.*=2; .* samples 600, 601\."):
        _note(skips, 6)


def test_a_step_that_is_not_skipped_ends_the_row() -> None:
    skips = SkippedSteps(2)
    for step in range(20):
        _note(skips, step, skipped=step % 3 != 0)


def test_a_step_that_runs_again_counts_once() -> None:
    skips = SkippedSteps(3)
    for step in (0, 1, 2, 1, 2, 0, 1, 2):
        _note(skips, step)
    with pytest.raises(DataError, match=r"0\.\.3"):
        _note(skips, 3)


def test_of_many_samples_the_first_are_listed() -> None:
    with pytest.raises(DataError, match="samples 100, 101, .* 163 and 36 more"):
        _note(SkippedSteps(0), 1, samples=100)
