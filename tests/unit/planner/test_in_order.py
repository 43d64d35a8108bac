"""Assignments by count alone."""

from hypothesis import given
from hypothesis import strategies as st

from disagg_train.planner.in_order import TokenBudget, alongside, in_order, split_evenly
from disagg_train.planner.step_plan import SampleSize, StepPlan
from disagg_train.topology.stream import Cut

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


_LENGTHS = st.lists(st.integers(1, 40), max_size=40)
_CUTS = st.builds(Cut, st.sampled_from((1, 2, 3)), st.sampled_from((1, 2, 4)))


def _sizes(lengths: list[int]) -> list[SampleSize]:
    return [SampleSize(key, length, 1) for key, length in enumerate(lengths)]


@given(_LENGTHS, degrees, degrees, st.integers(60, 200), _CUTS)
def test_no_lane_goes_beyond_the_budget_and_no_sample_that_fits_is_left_out(
    lengths: list[int], microbatches: int, dp: int, tokens: int, cut: Cut
) -> None:
    budget, samples = TokenBudget(tokens, microbatches, dp, cut), _sizes(lengths)
    assignment = budget.assign(samples)
    lanes = [lane for microbatch in assignment for lane in microbatch]
    filled = [[lengths[i] for i in lane] for lane in lanes]
    assert all(cut.stream(lane).num_positions <= tokens for lane in filled)
    count = budget.num_fitting(samples)
    assert sorted(i for lane in lanes for i in lane) == list(range(count))
    if count < len(lengths):
        more = [cut.stream([*lane, lengths[count]]).num_positions for lane in filled]
        assert min(more) > tokens
    assert [len(microbatch) for microbatch in assignment] == [dp] * microbatches


@given(_LENGTHS, degrees, degrees, st.integers(60, 200))
def test_lanes_come_out_alike(lengths: list[int], microbatches: int, dp: int, tokens: int) -> None:
    assignment = TokenBudget(tokens, microbatches, dp).assign(_sizes(lengths))
    filled = [sum(lengths[i] for i in lane) for microbatch in assignment for lane in microbatch]
    assert max(filled) - min(filled) <= max(lengths, default=0)


@given(_LENGTHS, st.integers(60, 200), st.integers(0, 40))
def test_samples_that_come_later_change_nothing(lengths: list[int], tokens: int, cut: int) -> None:
    budget = TokenBudget(tokens, 2, 2)
    count = budget.num_fitting(_sizes(lengths))
    assert budget.num_fitting(_sizes(lengths[:cut])) == min(count, len(lengths[:cut]))


@given(_LENGTHS, degrees, degrees)
def test_encoders_hold_the_samples_of_the_llms_microbatches(
    lengths: list[int], microbatches: int, dp: int
) -> None:
    language = TokenBudget(100, microbatches, 2).assign(_sizes(lengths))
    encoder = alongside(language, dp)
    for ours, theirs in zip(encoder, language, strict=True):
        assert len(ours) == dp
        assert [i for lane in ours for i in lane] == sorted(i for lane in theirs for i in lane)


def test_no_microbatch_is_empty_where_samples_suffice() -> None:
    assert TokenBudget(100, 3, 2).assign(_sizes([5] * 3)) == (((0,), ()), ((1,), ()), ((2,), ()))
