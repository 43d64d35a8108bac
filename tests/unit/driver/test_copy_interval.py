"""Copies are made as often as their cost allows."""

import math

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.config.survival import RecoveryConfig
from disagg_train.driver.copy_interval import CopyInterval
from disagg_train.metrics.records import Stored


def _interval(shares_cores: bool = False, **config: float) -> CopyInterval:
    interval = CopyInterval(RecoveryConfig.model_validate(config), shares_cores)
    interval.note_step(100.0)
    interval.note_copy([Stored(100.0, 100.0)])
    return interval


@given(st.floats(1e-4, 10.0), st.floats(1e-4, 10.0), st.floats(0.005, 0.5))
def test_copies_stay_within_their_part_of_the_time(
    step_s: float, stall_s: float, most: float
) -> None:
    interval = _interval(max_overhead=most)
    interval.note_copy([Stored(stall_s, 99.0), Stored(stall_s / 2, 99.0)])
    interval.note_step(step_s)
    assert stall_s <= interval.steps * step_s * most * (1 + 1e-9)
    assert interval.steps == 1 or stall_s >= (interval.steps - 1) * step_s * most * (1 - 1e-9)


def test_storing_counts_where_it_takes_the_cores_that_compute() -> None:
    for shares_cores, steps in ((False, 4), (True, 30)):
        interval = _interval(shares_cores, max_overhead=0.05)
        interval.note_step(1.0)
        interval.note_copy([Stored(0.19, 0.8), Stored(0.1, 0.5)])
        assert interval.steps == steps


def test_one_slow_step_or_copy_changes_nothing() -> None:
    interval = _interval(max_overhead=0.1)
    for took_s in (1.0, 1.0, 50.0):
        interval.note_step(took_s)
        interval.note_copy([Stored(0.3 * took_s, 0.0)])
    assert interval.steps == 3


def test_the_first_step_and_copy_of_new_actors_are_passed_over() -> None:
    interval = _interval(max_overhead=0.1)
    assert interval.steps == 1
    interval.note_copy([Stored(1.0, 0.0)])
    assert interval.steps == math.inf
    interval.note_step(1.0)
    interval.begin_anew()
    interval.note_step(100.0)
    interval.note_copy([Stored(100.0, 0.0)])
    interval.note_step(1.0)
    assert interval.steps == 10


def test_a_fixed_interval_is_kept_whatever_copies_take() -> None:
    interval = _interval(copy_every_steps=7)
    interval.note_copy([Stored(100.0, 0.0)])
    assert interval.steps == 7
