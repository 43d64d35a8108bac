"""Runs of microbatches that an encoder takes at once."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.gathering import run_of


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 64))
def test_a_run_is_no_longer_than_it_takes_to_keep_all_ranks_busy(
    dp: int, samples: int, within: int
) -> None:
    run = run_of(dp, samples, within)
    assert within % run == 0
    assert run * samples >= dp or run == within
    assert all(within % shorter or shorter * samples < dp for shorter in range(1, run))
