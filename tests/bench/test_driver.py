"""What planning a step of 4,096 samples on 1,024 ranks costs, in time of the process itself.

Cores are shared, and what others do on them only adds to a median: the best of six counts.
"""

from collections.abc import Callable

import pytest

from disagg_train.bench.driver import DriverResult, run_driver

pytestmark = pytest.mark.bench

_TRIES = 6


@pytest.fixture(scope="module")
def measured() -> list[DriverResult]:
    return [run_driver(4096, 1024)]


@pytest.fixture
def least_ms(
    measured: list[DriverResult], keep
) -> Callable[[Callable[[DriverResult], float], float], float]:
    """Measure again while a time is above its bar; return the least of at most six."""

    def least(time_of: Callable[[DriverResult], float], bar_ms: float) -> float:
        while min(map(time_of, measured)) > bar_ms and len(measured) < _TRIES:
            measured.append(run_driver(4096, 1024))
        best = min(measured, key=time_of)
        keep("driver", best.as_dict())
        return time_of(best)

    return least


def test_a_step_is_balanced_within_50_ms(least_ms) -> None:
    assert least_ms(lambda result: result.balance_cpu_ms, 50) <= 50


def test_a_rank_has_its_routes_within_5_ms(least_ms) -> None:
    assert least_ms(lambda result: result.routes_one_rank_cpu_ms, 5) <= 5


def test_a_plan_weighs_a_hundred_bytes_a_sample(measured: list[DriverResult]) -> None:
    assert measured[0].step_plan_bytes_per_rank <= 100 * measured[0].samples
