"""Step plans: every sample once, token ids by sampler order, one digest per content."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.planner.step_plan import Assignment, SampleSize, Slot, StepPlan


def sample(key: int, tokens: int = 2) -> SampleSize:
    slots = {"vision": (Slot(1, tokens),)} if tokens else {}
    return SampleSize(key, tokens + 4, 3, slots, {"vision": 4 * tokens})


def a_plan(**changes: Any) -> StepPlan:
    fields: dict[str, Any] = {
        "step": 7,
        "samples": (sample(10), sample(11), sample(12, 0)),
        "assignment": {"vision": (((0, 1), (2,)),), "language": (((2, 0, 1),),)},
        "learning_rate": 0.1,
    }
    return StepPlan(**(fields | changes))


@pytest.mark.parametrize(
    "held",
    [
        pytest.param((((0, 1), (1, 2)),), id="twice in one microbatch"),
        pytest.param((((0, 1, 2),), ((0,),)), id="twice over two microbatches"),
        pytest.param((((0,), (2,)),), id="never"),
        pytest.param((((0, 0, 2),),), id="one twice and another never"),
        pytest.param((((0, 1, 2, 3),),), id="unknown"),
        pytest.param((), id="no microbatches"),
    ],
)
def test_a_sample_held_twice_or_never_is_refused_with_the_module(held: Assignment) -> None:
    with pytest.raises(PlanError, match=r"step 7: module 'language' holds samples .*0\.\.2 must"):
        a_plan(assignment={"vision": (((0, 1), (2,)),), "language": held})


def test_modules_with_different_numbers_of_microbatches_are_refused() -> None:
    with pytest.raises(PlanError, match="language"):
        a_plan(assignment={"vision": (((0, 1, 2),),), "language": (((0,),), ((1, 2),))})


def test_token_ids_follow_the_order_of_the_samples_whatever_the_assignment() -> None:
    assert a_plan().offsets("vision") == (0, 2, 4, 4)


def test_an_encoder_without_any_tokens_has_empty_intervals() -> None:
    assert a_plan().offsets("audio") == (0, 0, 0, 0)


def test_a_samples_tokens_are_those_of_all_its_slots() -> None:
    two_images = replace(sample(0), slots={"vision": (Slot(0, 3), Slot(5, 4))})
    assert two_images.tokens("vision") == 7
    assert two_images.tokens("audio") == 0


def test_target_tokens_are_summed_over_the_whole_batch() -> None:
    assert a_plan().num_target_tokens == 9


def test_held_is_by_microbatch_and_dp_rank() -> None:
    plan = a_plan()
    assert plan.num_microbatches == 1
    assert plan.held("vision", 0, 1) == (2,)
    assert plan.held("language", 0, 0) == (2, 0, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"step": 8},
        {"learning_rate": 0.2},
        {"assignment": {"vision": (((0, 1), (2,)),), "language": (((0, 2, 1),),)}},
        {"assignment": {"vision": (((0,), (1, 2)),), "language": (((2, 0, 1),),)}},
        {"assignment": {"vision": (((0, 1), (2,)),), "text": (((2, 0, 1),),)}},
        {"samples": (sample(10), sample(11), sample(13, 0))},
        {"samples": (sample(10), sample(11, 3), sample(12, 0))},
        {"samples": (sample(10), replace(sample(11), sequence_tokens=9), sample(12, 0))},
        {"samples": (sample(10), replace(sample(11), target_tokens=4), sample(12, 0))},
        {"samples": (sample(10), replace(sample(11), input_tokens={}), sample(12, 0))},
        {"samples": (sample(10), replace(sample(11), slots={"a": (Slot(1, 2),)}), sample(12, 0))},
        {
            "samples": (
                sample(10),
                replace(sample(11), slots={"vision": (Slot(2, 2),)}),
                sample(12, 0),
            )
        },
    ],
    ids=str,
)
def test_the_digest_differs_when_anything_differs(changes: dict[str, Any]) -> None:
    assert a_plan(**changes).digest != a_plan().digest


@given(st.integers(0, 5), st.lists(st.integers(0, 7), max_size=5), st.floats(0, 1))
def test_equal_plans_have_equal_digests_of_63_bits(
    step: int, sizes: list[int], learning_rate: float
) -> None:
    def build() -> StepPlan:
        samples = tuple(sample(i, size) for i, size in enumerate(sizes))
        assignment = {"language": ((tuple(range(len(sizes))),),)}
        return StepPlan(step, samples, assignment, learning_rate)

    assert build() == build()
    assert build().digest == build().digest
    assert 0 <= build().digest < 2**63


def test_the_digest_does_not_depend_on_the_order_of_the_modules() -> None:
    plan = a_plan()
    turned = dict(reversed(list(plan.assignment.items())))
    assert replace(plan, assignment=turned).digest == plan.digest
