"""What ops cost: what stands in for what, values per microbatch, and measured spans."""

import pytest

from disagg_train.errors import PlanError
from disagg_train.metrics.records import RankReport, Span
from disagg_train.schedule.costs import CostModel, TransferCost
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.measured_costs import measured_costs
from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.simulate import simulate
from disagg_train.schedule.timeline import Timeline
from tests.unit.schedule.costs import uniform_costs
from tests.unit.schedule.strategies import (
    LANGUAGE,
    disjoint_graph,
    interleaved_graph,
    pipelined_graph,
)
from tests.unit.schedule.strategies import TrainingCase as Case


def costs_of(**seconds: float) -> CostModel:
    return CostModel({(OpKind(kind), "a"): (each,) for kind, each in seconds.items()})


@pytest.mark.parametrize("kind", [OpKind.EVALUATE, OpKind.RUN_AHEAD])
def test_evaluating_and_running_ahead_cost_a_forward(kind: OpKind) -> None:
    assert costs_of(forward=3.0).op_s(Op(kind, "a", 0)) == 3.0


@pytest.mark.parametrize("kind", [OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT])
def test_half_a_backward_costs_half_of_it_unless_it_has_its_own_seconds(kind: OpKind) -> None:
    assert costs_of(backward=3.0).op_s(Op(kind, "a", 0)) == 1.5
    assert costs_of(**{"backward": 3.0, kind.value: 1.0}).op_s(Op(kind, "a", 0)) == 1.0


def test_a_backward_costs_both_its_halves() -> None:
    costs = costs_of(backward_input=1.0, backward_weight=0.5)
    assert costs.op_s(Op(OpKind.BACKWARD, "a", 0)) == 1.5


def test_the_end_of_a_step_is_free_where_nothing_is_said() -> None:
    for op in (Op(OpKind.AGREE), Op(OpKind.GRAD_SYNC, "a"), Op(OpKind.OPTIMIZER_STEP, "a")):
        assert costs_of(forward=1.0).op_s(op) == 0.0


def test_a_pass_of_a_stage_without_costs_is_refused_and_the_known_stages_are_named() -> None:
    with pytest.raises(PlanError, match=r"'forward b 2'.*\['a'\]"):
        costs_of(forward=1.0).op_s(Op(OpKind.FORWARD, "b", 2))


def test_costs_per_microbatch_end_where_they_end() -> None:
    costs = CostModel({(OpKind.FORWARD, "a"): (1.0, 2.0)})
    assert costs.op_s(Op(OpKind.FORWARD, "a", 1)) == 2.0
    with pytest.raises(PlanError, match="known for 2 microbatches, none for 2"):
        costs.op_s(Op(OpKind.FORWARD, "a", 2))


def test_a_transfer_takes_its_latency_and_its_bytes_time() -> None:
    cost = TransferCost((0.5,), (100.0, 300.0), bytes_per_s=200.0)
    assert [cost.seconds(0), cost.seconds(1)] == [1.0, 2.0]


def test_the_two_directions_of_an_edge_have_costs_of_their_own() -> None:
    forward = {(OpKind.SEND_FORWARD, "a->b"): TransferCost((1.0,))}
    costs = CostModel({}, forward)
    assert costs.transfer_s(Op(OpKind.RECV_FORWARD, "", 0, "a->b")) == 1.0
    assert costs.transfer_s(Op(OpKind.RECV_BACKWARD, "", 0, "a->b")) == 0.0


def every_ranks_reports(timeline: Timeline) -> list[RankReport]:
    """Return the reports of all ranks, of which the timeline gives one per kind."""
    of_kind = {report.place: report for report in timeline.reports()}
    return [
        RankReport(rank, spans=of_kind[first].spans) for rank, first in enumerate(timeline.alike)
    ]


@pytest.mark.parametrize(
    "graph",
    [disjoint_graph(), disjoint_graph(False), pipelined_graph(), interleaved_graph()],
    ids=["one stage each", "running ahead", "pipelines", "interleaved"],
)
def test_measuring_a_simulated_run_gives_its_step_time_again(graph: StageGraph) -> None:
    schedule = Case(graph, 4, 4).schedule
    wanted = simulate(schedule, graph, uniform_costs(graph, 1.0, 2.0, 0.25))
    measured = measured_costs([every_ranks_reports(wanted)] * 2, graph, 4)
    found = simulate(schedule, graph, measured)
    assert found.step_time_s == pytest.approx(wanted.step_time_s)
    assert found.bubble == pytest.approx(wanted.bubble)


def span(name: str, begin_s: float, end_s: float) -> Span:
    return Span(name, name.split()[1], "forward", begin_s, end_s)


def reports_of(*durations_s: tuple[float, float]) -> list[list[RankReport]]:
    """Return a report per step of the LLM's lane (ranks 2 and 3), which began together."""
    return [
        [RankReport(rank, spans=[span("forward language 0", 10.0, 10.0 + each_s)])]
        + [RankReport(3, spans=[span("forward language 0", 10.0, 10.0 + other_s)])]
        for each_s, other_s in durations_s
        for rank in [2]
    ]


def test_the_wait_for_a_lane_partner_is_no_part_of_a_forward() -> None:
    costs = measured_costs(reports_of((5.0, 2.0)), disjoint_graph(), 1)
    assert costs.op_s(Op(OpKind.FORWARD, LANGUAGE, 0)) == 2.0


def test_steps_are_summed_up_by_their_median() -> None:
    costs = measured_costs(reports_of((1.0, 1.0), (2.0, 2.0), (9.0, 9.0)), disjoint_graph(), 1)
    assert costs.op_s(Op(OpKind.FORWARD, LANGUAGE, 0)) == 2.0


def test_a_run_of_fewer_microbatches_gives_one_median_for_all() -> None:
    costs = measured_costs(reports_of((1.0, 1.0), (3.0, 3.0)), disjoint_graph(), 8)
    assert costs.op_s(Op(OpKind.FORWARD, LANGUAGE, 7)) == 2.0


def test_a_run_that_recorded_no_op_is_refused() -> None:
    with pytest.raises(PlanError, match="trace_steps"):
        measured_costs([], disjoint_graph(), 2)
