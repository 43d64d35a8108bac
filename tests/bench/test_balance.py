"""The bars of balance (DESIGN, section 9): simulated, so the same on every machine."""

import pytest

from disagg_train.bench.balance import BalanceResult, SpreadResult, run_balance
from disagg_train.bench.spreads import ENCODER, SPREADS
from disagg_train.config.job import LANGUAGE

pytestmark = pytest.mark.bench

_STEPS = 10
_HIGHEST = "chart-to-table"


@pytest.fixture(scope="module")
def measured() -> BalanceResult:
    return run_balance(_STEPS)


@pytest.fixture
def result(measured: BalanceResult, keep) -> BalanceResult:
    keep("balance", measured.as_dict())
    return measured


def _of(result: BalanceResult, data: str) -> SpreadResult:
    return next(each for each in result.spreads if each.data == data)


def test_microbatches_of_high_spread_become_alike(result: BalanceResult) -> None:
    ratio = _of(result, _HIGHEST).std_ratio
    assert ratio[ENCODER] >= 10.6 and ratio[LANGUAGE] >= 4.1, ratio


def test_throughput_of_high_spread_rises(result: BalanceResult) -> None:
    assert _of(result, _HIGHEST).throughput_ratio >= 1.40


@pytest.mark.parametrize("data", SPREADS)
def test_no_kind_of_data_and_no_step_of_it_becomes_slower(result: BalanceResult, data: str) -> None:
    found = _of(result, data)
    assert found.least_throughput_ratio >= 1.00, found
