"""The boundary's bars of DESIGN, section 9: 4,096 tokens of 1,024 values, over gloo."""

import pytest

from disagg_train.bench.boundary import BoundaryResult, parse_layout, run_boundary
from disagg_train.bench.boundary_suite import PAIRS

pytestmark = pytest.mark.bench

_TOKENS, _HIDDEN, _ROUNDS = 4096, 1024, 100
_ONE_TOKEN = 1 / _TOKENS


@pytest.fixture(scope="module", params=PAIRS, ids=" to ".join)
def measured(request: pytest.FixtureRequest) -> BoundaryResult:
    source, destination = map(parse_layout, request.param)
    return run_boundary(source, destination, _TOKENS, _HIDDEN, _ROUNDS)


def test_every_byte_crosses_once_and_every_rank_carries_its_share(measured, keep) -> None:
    pair = f"{measured.source}-{measured.destination}".replace("=", "").replace(",", "")
    keep(f"boundary-{pair.replace('true', '')}", measured.as_dict())
    assert measured.wire_over_payload_forward == pytest.approx(1.0)
    assert measured.wire_over_payload_backward == pytest.approx(1.0)
    busiest, least = measured.max_rank_wire_over_payload, measured.max_rank_lower_bound
    assert least <= busiest <= least + _ONE_TOKEN


def test_the_boundary_beats_megatrons(measured) -> None:
    if measured.megatron_bar is None:
        pytest.skip(measured.megatron_refusal or "no bar for this pair")
    assert measured.ratio_megatron is not None
    assert measured.ratio_megatron <= measured.megatron_bar, measured


def test_the_boundary_costs_little_more_than_a_raw_message(measured) -> None:
    if measured.raw_bar is None:
        pytest.skip("a side has replicas, and they gather")
    assert measured.ratio_raw <= measured.raw_bar, measured


def test_megatron_refuses_context_parallelism_and_what_does_not_divide(measured) -> None:
    refuses = "cp=" in measured.source + measured.destination or measured.source == "dp=3"
    assert (measured.megatron_ms is None) == refuses
    assert bool(measured.megatron_refusal) == refuses
