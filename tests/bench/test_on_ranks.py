"""What balance and plans are worth on ranks that each have a part of a core: too long for CI."""

import pytest

from disagg_train.bench.balance_on_ranks import run_balance_on_ranks
from disagg_train.bench.core_share import can_share_cores
from disagg_train.bench.plan_on_ranks import MeasuredPlan, as_dict, planned_jobs, run_plan_on_ranks

pytestmark = [
    pytest.mark.soak,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not can_share_cores(), reason="this user may not limit processes here"),
]


def test_balanced_steps_are_about_as_much_quicker_as_simulated(keep) -> None:
    found = run_balance_on_ranks()
    keep("balance-measured", found.as_dict())
    low, high = found.times.ratio_interval_95
    assert high < 1.0, found
    assert low <= 1.1 / found.simulated_ratio, found


@pytest.fixture(scope="module")
def plans() -> list[MeasuredPlan]:
    return list(run_plan_on_ranks(planned_jobs()))


def test_the_chosen_layout_is_within_five_percent_of_the_best(
    plans: list[MeasuredPlan], keep
) -> None:
    keep("plan-measured", as_dict(plans))
    for plan in plans:
        ratio = plan.again.ratio if plan.again else plan.chosen_over_best
        assert ratio <= 1.05, plan


@pytest.mark.xfail(reason="0.72 to 0.84 were measured: docs/planning.md", strict=False)
def test_layouts_are_simulated_in_the_order_in_which_they_are_measured(
    plans: list[MeasuredPlan],
) -> None:
    assert all(plan.rank_correlation > 0.9 for plan in plans)
