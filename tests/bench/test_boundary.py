"""The boundary's bars of DESIGN, section 9: 4,096 tokens of 1,024 values, over gloo."""

from dataclasses import dataclass

import pytest

from disagg_train.bench.boundary import BoundaryResult, parse_layout, run_boundary

pytestmark = pytest.mark.bench

_TOKENS, _HIDDEN, _ROUNDS = 4096, 1024, 40
_ONE_TOKEN = 1 / _TOKENS


@dataclass(frozen=True)
class Bars:
    """What a pair of layouts must reach; None where there is nothing to reach.

    ``lanes`` is the number of ranks on the narrower side: the busiest rank carries 1/lanes.
    """

    name: str
    source: str
    destination: str
    lanes: int
    megatron: float | None = None
    raw: float | None = None


PAIRS = [
    Bars("tp2-tp2", "tp=2,dp=1", "tp=2,dp=1", lanes=2, megatron=0.85),
    Bars("tp2-tp2sp", "tp=2,dp=1", "tp=2,dp=1,sp=true", lanes=2, megatron=0.5),
    Bars("dp2-dp2", "tp=1,dp=2", "tp=1,dp=2", lanes=2, raw=1.3),
    Bars("dp2-tp2sp", "dp=2", "tp=2,sp=true", lanes=2, megatron=0.5, raw=1.3),
    Bars("dp3-dp2", "dp=3", "dp=2", lanes=2, raw=1.3),
]


@pytest.fixture(scope="module", params=PAIRS, ids=lambda bars: bars.name)
def measured(request: pytest.FixtureRequest) -> tuple[Bars, BoundaryResult]:
    bars = request.param
    source, destination = parse_layout(bars.source), parse_layout(bars.destination)
    return bars, run_boundary(source, destination, _TOKENS, _HIDDEN, _ROUNDS)


def test_every_byte_crosses_once_and_every_rank_carries_its_share(measured, keep) -> None:
    bars, result = measured
    keep(f"boundary-{bars.name}", result.as_dict())
    assert result.wire_over_payload_forward == pytest.approx(1.0)
    assert result.wire_over_payload_backward == pytest.approx(1.0)
    assert result.max_rank_wire_over_payload <= 1 / bars.lanes + _ONE_TOKEN


def test_the_boundary_beats_megatrons(measured) -> None:
    bars, result = measured
    if bars.megatron is None:
        pytest.skip("no bar for this pair")
    assert result.ratio_megatron is not None
    assert result.ratio_megatron <= bars.megatron, result


def test_the_boundary_costs_little_more_than_a_raw_message(measured) -> None:
    bars, result = measured
    if bars.raw is None:
        pytest.skip("a side has replicas, and they gather")
    assert result.ratio_raw is not None
    assert result.ratio_raw <= bars.raw, result


def test_megatron_refuses_what_does_not_divide(measured) -> None:
    bars, result = measured
    refuses = bars.name == "dp3-dp2"
    assert (result.megatron_ms is None) == refuses
