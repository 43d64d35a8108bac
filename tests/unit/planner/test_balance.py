"""Assignments by count alone."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.balance import in_order, split_evenly
from disagg_train.planner.step_plan import SampleSize, StepPlan

num_samples = st.integers(0, 20)
degrees = st.integers(1, 5)


@given(num_samples, degrees)
def test_runs_keep_the_order_and_differ_by_at_most_one(count: int, parts: int) -> None:
    runs = split_evenly(range(count), parts)
    assert [i for run in runs for i in run] == list(range(count))
    lengths = [len(run) for run in runs]
    assert len(runs) == parts and max(lengths) - min(lengths) <= 1


@given(num_samples, degrees, degrees)
def test_samples_are_assigned_in_order_and_evenly(count: int, microbatches: int, dp: int) -> None:
    assignment = in_order(count, microbatches, dp)
    flat = [i for lanes in assignment for lane in lanes for i in lane]
    assert flat == list(range(count))
    sizes = [sum(len(lane) for lane in lanes) for lanes in assignment]
    assert len(sizes) == microbatches and max(sizes) - min(sizes) <= 1
    assert all(len(lanes) == dp for lanes in assignment)


@given(num_samples, degrees, degrees, degrees)
def test_modules_of_different_dp_hold_the_same_samples_in_each_microbatch(
    count: int, microbatches: int, encoder_dp: int, language_dp: int
) -> None:
    samples = tuple(SampleSize(i, 1, 1) for i in range(count))
    degrees_of = {"vision": encoder_dp, "language": language_dp}
    assignment = {m: in_order(count, microbatches, dp) for m, dp in degrees_of.items()}
    plan = StepPlan(0, samples, assignment)
    for microbatch in range(microbatches):
        held = [
            {i for lane in assignment[module][microbatch] for i in lane} for module in degrees_of
        ]
        assert held[0] == held[1]
    assert plan.num_microbatches == microbatches


def test_no_full_microbatch_is_empty_where_samples_suffice() -> None:
    assert in_order(5, 2, 3) == (((), (0,), (1,)), ((2,), (3,), (4,)))
