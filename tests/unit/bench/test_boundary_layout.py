import json
from dataclasses import replace

import pytest

from disagg_train.bench.boundary import BoundaryResult, layout_text, parse_layout
from disagg_train.bench.boundary_suite import PAIRS, refusals, table_row
from disagg_train.bench.case import BoundaryCase
from disagg_train.bench.dead_time import dead_time_fraction
from disagg_train.bench.statistics import bootstrap_interval, ratio
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ConfigError
from disagg_train.metrics.records import RankReport, Span


def test_a_layout_is_read_axis_by_axis() -> None:
    assert parse_layout("tp=2,dp=1,sp=true") == ParallelConfig(tp=2, dp=1, sp=True)
    assert parse_layout(" dp = 3 , sp=False") == ParallelConfig(dp=3)


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("tp", "write axis=degree"),
        ("", "write axis=degree"),
        ("tensor=2", "write axis=degree"),
        ("tp=two", "use a number from 1 up"),
        ("tp=-1", "use a number from 1 up"),
        ("tp=0", "greater than 0"),
        ("sp=2", "neither true nor false"),
        ("tp=2,tp=4", "name each axis once"),
        ("cp=2,ep=4", "use one of"),
    ],
)
def test_a_bad_layout_is_refused_with_the_way_out(text: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=way_out):
        parse_layout(text)


@pytest.mark.parametrize("text", ["dp=1", "dp=3", "tp=2,sp=true", "tp=2,cp=2,pp=4,dp=3,sp=true"])
def test_a_layout_is_written_as_it_is_read(text: str) -> None:
    assert layout_text(parse_layout(text)) == text


def test_the_interval_holds_the_median_and_is_the_same_again() -> None:
    values = [1.00, 1.02, 0.98, 1.01, 1.03, 0.97, 1.00, 1.05, 0.99, 1.01]
    low, high = bootstrap_interval(values)
    assert min(values) <= low <= 1.005 <= high <= max(values)
    assert bootstrap_interval(values) == (low, high)


def test_equal_values_leave_no_doubt() -> None:
    assert bootstrap_interval([1.5] * 8) == (1.5, 1.5)


def test_more_blocks_narrow_the_interval() -> None:
    values = [0.9, 1.0, 1.1, 1.2, 0.8]
    narrow, wide = bootstrap_interval(values * 20), bootstrap_interval(values)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval([])


def test_a_ratio_to_nothing_is_nothing() -> None:
    assert ratio(3.0, None) is None
    assert json.dumps(ratio(3.0, 2.0)) == "1.5"


def test_all_tokens_of_a_case_cross_and_dp_ranks_have_equal_work() -> None:
    case = BoundaryCase(parse_layout("dp=3"), parse_layout("dp=2"), 4096, 8)
    assert sum(sample.tokens("vision") for sample in case.plan.samples) == 4096
    holdings = case.boundary.layouts(case.plan, 0).source.holdings
    assert {holding.num_tokens for holding in holdings} <= {1365, 1366}
    assert case.raw_pairs == 2


def _case(source: str, destination: str, num_tokens: int = 64) -> BoundaryCase:
    return BoundaryCase.between(parse_layout(source), parse_layout(destination), num_tokens, 8)


@pytest.mark.parametrize(
    ("source", "destination", "pairs"),
    [
        ("tp=2", "tp=2", 1),
        ("tp=2", "tp=2,sp=true", 1),
        ("dp=2", "tp=2,sp=true", 2),
        ("dp=1", "dp=4", 1),
        ("dp=2", "dp=2", 2),
        ("cp=2", "tp=2,sp=true", 2),
        ("cp=2,tp=2,sp=true", "cp=2", 2),
        ("cp=2,tp=2", "cp=2", 1),
    ],
)
def test_raw_messages_go_in_parallel_only_where_no_side_has_replicas(
    source: str, destination: str, pairs: int
) -> None:
    assert _case(source, destination).raw_pairs == pairs


def test_only_the_stages_at_the_boundary_take_part() -> None:
    whole, stages = _case("pp=3,dp=2", "tp=2,pp=4"), _case("dp=2", "tp=2")
    assert whole == stages
    assert whole.num_ranks == 4


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_the_busiest_rank_carries_the_least_that_it_can(source: str, destination: str) -> None:
    case = _case(source, destination, 4096)
    ranks = range(case.num_ranks)
    parts = [case.boundary.exchanges(case.plan, place)[0] for place in ranks]
    both = [exchange for part in parts for exchange in (part.forward, part.backward)]
    busiest = max(max(each.num_sent, each.num_received) for each in both)
    least = case.max_rank_lower_bound * 4096
    assert least <= busiest < least + 1


@pytest.mark.parametrize(
    ("source", "destination", "narrower"),
    [
        ("dp=2", "dp=2", 2),
        ("dp=1", "dp=4", 1),
        ("tp=2", "dp=4", 2),
        ("dp=2", "cp=2", 2),
        ("cp=2", "tp=2,sp=true", 2),
        ("tp=2,cp=2", "tp=2,dp=2", 4),
        ("tp=2,cp=2,sp=true", "dp=3", 3),
    ],
)
def test_equal_samples_bound_the_busiest_rank_by_its_share_of_the_narrower_side(
    source: str, destination: str, narrower: int
) -> None:
    assert _case(source, destination, 96).max_rank_lower_bound == pytest.approx(1 / narrower)


def test_samples_that_differ_raise_the_bound_above_the_equal_share() -> None:
    bound = _case("dp=3", "dp=2", 100).max_rank_lower_bound
    assert bound == pytest.approx(50 / 100)
    assert _case("dp=1", "cp=2", 102).max_rank_lower_bound == pytest.approx(1.0)
    assert _case("dp=2", "cp=2", 92).max_rank_lower_bound == pytest.approx(48 / 92)


@pytest.mark.parametrize(
    ("source", "destination", "megatron", "raw"),
    [
        ("dp=2", "dp=2", None, 1.3),
        ("tp=2", "tp=2", 0.85, None),
        ("dp=2", "tp=2", 0.85, None),
        ("tp=2", "tp=2,sp=true", 0.5, None),
        ("dp=2", "tp=2,sp=true", 0.5, 1.3),
        ("cp=2", "cp=2", 0.5, 1.3),
    ],
)
def test_bars_follow_from_the_layouts(
    source: str, destination: str, megatron: float | None, raw: float | None
) -> None:
    case = _case(source, destination)
    assert (case.megatron_bar, case.raw_bar) == (megatron, raw)


def test_the_suite_has_enough_pairs_and_none_is_too_large() -> None:
    assert len(set(PAIRS)) == len(PAIRS) >= 10
    assert max(_case(*pair).num_ranks for pair in PAIRS) <= 8


_RESULT = BoundaryResult(
    source="dp=2",
    destination="tp=2,sp=true",
    num_tokens=4096,
    hidden_size=1024,
    ours_ms=12.0,
    megatron_ms=40.0,
    megatron_refusal=None,
    raw_ms=10.0,
    ratio_megatron=0.3,
    megatron_bar=0.5,
    ratio_raw=1.2,
    raw_bar=1.3,
    wire_over_payload_forward=1.0,
    wire_over_payload_backward=1.0,
    max_rank_wire_over_payload=0.5,
    max_rank_lower_bound=0.5,
    rounds=20,
    hardware={},
    commit="",
    samples_ms={},
)


def test_a_row_of_the_suite_shows_each_ratio_with_its_bar() -> None:
    cells = table_row(_RESULT)
    assert cells[0] == "dp2 -> tp2 sp"
    assert cells[4:6] == ("0.30 (<= 0.5)", "1.20 (<= 1.3)")


def test_a_refusal_is_shown_in_megatrons_words() -> None:
    refused = replace(
        _RESULT, megatron_ms=None, ratio_megatron=None, megatron_refusal="CP size must be 1"
    )
    assert table_row(refused)[2] == "refused"
    assert refusals([_RESULT, refused]) == [
        "Megatron refuses dp=2 -> tp=2,sp=true: CP size must be 1"
    ]


def _report(place: int, *times_s: float) -> RankReport:
    spans = [
        Span("op", "language", "forward", begin_s, end_s)
        for begin_s, end_s in zip(times_s[::2], times_s[1::2], strict=True)
    ]
    return RankReport(place, spans=spans)


def test_dead_time_is_between_ops_and_steps_but_not_between_runs() -> None:
    idle_between_ops = [[_report(0, 0.0, 4.0, 5.0, 9.0)], [_report(0, 9.0, 10.0)]]
    idle_between_steps = [[_report(0, 100.0, 109.0)], [_report(0, 109.5, 110.0)]]
    assert dead_time_fraction([idle_between_ops]) == pytest.approx(1 / 10)
    assert dead_time_fraction([idle_between_steps]) == pytest.approx(0.5 / (9.5 / 2 + 0.5))
    both = (1 / 4 + 0.5 / 2) / (19.5 / 4 + 0.5 / 2)
    assert dead_time_fraction([idle_between_ops, idle_between_steps]) == pytest.approx(both)


def test_the_length_of_runs_does_not_hide_the_gaps() -> None:
    steps = [[_report(0, 10.0 * i, 10.0 * i + 9.0)] for i in range(6)]
    assert dead_time_fraction([steps]) == pytest.approx(0.1)
    assert dead_time_fraction([steps[:2], steps[2:4], steps[4:]]) == pytest.approx(0.1)


def test_dead_time_is_that_of_the_worst_rank() -> None:
    assert dead_time_fraction([[[_report(0, 0.0, 1.0), _report(1, 0.0, 0.5, 0.9, 1.0)]]]) == (
        pytest.approx(0.4)
    )
