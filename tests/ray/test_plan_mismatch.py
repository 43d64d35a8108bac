"""Ranks that hold different plans find out before a byte moves."""

import pytest
from torch.distributed import Store

from disagg_train.engine.agreement import check_same_plan
from disagg_train.errors import PlanError
from disagg_train.planner.in_order import in_order
from disagg_train.planner.step_plan import SampleSize, StepPlan
from tests.unit.boundary.gloo_ranks import join, on_each_rank

pytestmark = pytest.mark.ray  # no Ray, but the engine's import of Megatron


def _plan(tokens: int) -> StepPlan:
    return StepPlan(4, (SampleSize(0, tokens, 1),), {"language": in_order(1, 1, 1)})


def _message(place: int, store: Store, odd: int | None) -> str:
    plan = _plan(9 if place == odd else 8)
    try:
        check_same_plan(join("control", store, (0, 1, 2), place), plan)
    except PlanError as error:
        return str(error)
    return ""


def test_a_rank_with_another_plan_is_named_on_every_rank() -> None:
    found = on_each_rank((0, 1, 2), lambda place, store: _message(place, store, odd=1))
    assert found == ["step 4: the ranks [1] hold another plan than rank 0"] * 3


def test_equal_plans_pass() -> None:
    assert on_each_rank((0, 1, 2), lambda place, store: _message(place, store, None)) == [""] * 3
