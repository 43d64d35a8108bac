"""The simulator: textbook bubbles, known answers, what must hold for every schedule."""

from collections.abc import Mapping
from dataclasses import replace
from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.metrics.records import RankReport
from disagg_train.schedule.alike import alike_ranks, one_of_each
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.costs import CostModel, TransferCost
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.expected import inputs_of
from disagg_train.schedule.graph import Edge, StageGraph
from disagg_train.schedule.language import Pipeline
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.schedule.simulate import peak_bytes, simulate
from disagg_train.schedule.timeline import Slice, Timeline
from tests.unit.schedule.costs import scaled, uniform_costs
from tests.unit.schedule.faults import carrying, computing, edited, moved_before
from tests.unit.schedule.strategies import (
    LANGUAGE,
    TrainingCase,
    colocated_graph,
    disjoint_graph,
    graph_of,
    graph_of_modules,
    node,
    pipelined,
    training_cases,
)

BOUNDARY = "vision->language"


@st.composite
def costs_for(draw: st.DrawFn, graph: StageGraph) -> CostModel:
    """Draw whole seconds, so that sums are exact; every stage and edge has its own."""
    some = st.integers(0, 5).map(float)
    kinds = (
        OpKind.FORWARD,
        OpKind.BACKWARD,
        OpKind.BACKWARD_INPUT,
        OpKind.BACKWARD_WEIGHT,
        OpKind.GRAD_SYNC,
        OpKind.OPTIMIZER_STEP,
    )
    return CostModel(
        {(kind, stage): (draw(some),) for kind in kinds for stage in graph.nodes},
        {
            (kind, edge.name): TransferCost((draw(some),))
            for kind in (OpKind.SEND_FORWARD, OpKind.SEND_BACKWARD)
            for edge in graph.edges
        },
        {stage: (draw(some),) for stage in graph.nodes},
        start_s=draw(some),
    )


def by_op(timeline: Timeline, rank: int) -> Mapping[Op, Slice]:
    return {each.op: each for each in timeline.slices[rank]}


def llm_chain(stages: int) -> StageGraph:
    return graph_of_modules(pipelined(LANGUAGE, LANGUAGE, range(stages), stages, 1))


# The textbook.


@given(
    st.sampled_from([1, 2, 3, 4, 8]),
    st.integers(1, 16),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["1f1b", "gpipe"]),
)
def test_the_bubble_of_equal_stages_is_the_textbooks(
    stages: int, microbatches: int, forward_s: int, backward_s: int, pipeline: Pipeline
) -> None:
    graph = llm_chain(stages)
    schedule = training_schedule(graph, microbatches, microbatches, pipeline)
    timeline = simulate(schedule, graph, uniform_costs(graph, forward_s, backward_s))
    slots = microbatches + stages - 1
    assert timeline.step_time_s == slots * (forward_s + backward_s)
    assert timeline.bubble == pytest.approx([(stages - 1) / slots] * stages, abs=1e-15)


@pytest.mark.parametrize("stages", [2, 4, 8])
def test_a_split_backward_shrinks_the_bubble_to_what_its_weights_part_cannot_fill(
    stages: int,
) -> None:
    graph, microbatches = llm_chain(stages), 2 * stages
    schedule = training_schedule(graph, microbatches, microbatches, "zero_bubble")
    timeline = simulate(schedule, graph, uniform_costs(graph, 1.0, 2.0))
    assert timeline.step_time_s == 3 * microbatches + stages - 1


def test_interleaving_two_stages_per_rank_halves_the_bubble() -> None:
    graph = graph_of_modules(pipelined(LANGUAGE, LANGUAGE, range(4), 4, 1, vpp=2))
    timeline = simulate(training_schedule(graph, 8, 8), graph, uniform_costs(graph, 0.5, 1.0))
    assert timeline.step_time_s == 8 * 3 + 3 * 3 / 2


# Known answers.


def test_two_microbatches_over_a_boundary_take_what_the_hand_says() -> None:
    """vision F0 0-1, F1 1-2; rows 0 arrive at 2; language F0 2-3, B0 3-5, F1 5-6, B1 6-8."""
    graph = graph_of(node("vision", "encoders", range(1)), node(LANGUAGE, LANGUAGE, range(1, 2)))
    timeline = simulate(training_schedule(graph, 2, 2), graph, uniform_costs(graph, 1, 2, 1))
    vision, language = by_op(timeline, 0), by_op(timeline, 1)
    assert language[computing(OpKind.FORWARD, LANGUAGE, 0)] == Slice(
        computing(OpKind.FORWARD, LANGUAGE, 0), 2.0, 3.0
    )
    assert vision[computing(OpKind.BACKWARD, "vision", 0)].begin_s == 6.0
    assert vision[computing(OpKind.BACKWARD, "vision", 1)].begin_s == 9.0
    assert timeline.step_time_s == 11.0
    assert timeline.busy_s == (6.0, 6.0)
    assert timeline.module_bubble == pytest.approx({"vision": 5 / 11, LANGUAGE: 5 / 11})


def test_a_colocated_step_without_transfers_has_no_bubble() -> None:
    graph = colocated_graph()
    timeline = simulate(training_schedule(graph, 4, 2), graph, uniform_costs(graph))
    assert timeline.step_time_s == 4 * (1 + 2) * 2
    assert timeline.bubble == (0.0, 0.0)


def test_a_lane_begins_when_its_last_rank_is_ready() -> None:
    graph = graph_of(
        node("vision", LANGUAGE, range(1)), node(LANGUAGE, LANGUAGE, range(2), lane_size=2)
    )
    ops = (Op(OpKind.FORWARD, "vision", 0), Op(OpKind.FORWARD, LANGUAGE, 0))
    schedule = Schedule("by hand", (ops, ops[1:]), 1, {})
    timeline = simulate(schedule, graph, uniform_costs(graph))
    assert [each.begin_s for each in timeline.slices[0]] == [0.0, 1.0]
    assert [each.begin_s for each in timeline.slices[1]] == [1.0]


def two_ranks(sends: int, receiver_busy_s: float) -> tuple[Slice, ...]:
    """Return the slices of a rank that only sends to one that is busy for a while first."""
    graph = StageGraph(
        {"a": node("a", "a", range(1)), "b": node("b", "b", range(1, 2))}, (Edge("a", "b"),)
    )
    sender = [carrying(OpKind.SEND_FORWARD, "a->b", number) for number in range(sends)]
    receiver = [
        op
        for number in range(sends)
        for op in (
            computing(OpKind.FORWARD, "b", number),
            carrying(OpKind.RECV_FORWARD, "a->b", number),
        )
    ]
    schedule = Schedule("by hand", (tuple(sender), tuple(receiver)), sends, {})
    return simulate(schedule, graph, uniform_costs(graph, receiver_busy_s)).slices[0]


def test_the_third_send_under_way_waits_until_the_first_is_received() -> None:
    """The first receive is posted at once, the second once the first is done, at 10, ..."""
    ends_s = [each.end_s for each in two_ranks(5, receiver_busy_s=10.0)]
    assert ends_s == [0.0, 0.0, 0.0, 10.0, 20.0]


def test_a_sync_that_was_started_early_hides_behind_compute() -> None:
    graph = graph_of(node(LANGUAGE, LANGUAGE, range(1)))
    start, wait = Op(OpKind.START_GRAD_SYNC, LANGUAGE), Op(OpKind.GRAD_SYNC, LANGUAGE)
    work = computing(OpKind.FORWARD, LANGUAGE, 0)
    costs = uniform_costs(graph, forward_s=3.0)
    costs = replace(costs, seconds={**costs.seconds, (OpKind.GRAD_SYNC, LANGUAGE): (4.0,)})

    def step_s(*ops: Op) -> float:
        return simulate(Schedule("by hand", (ops,), 1, {}), graph, costs).step_time_s

    assert step_s(work, wait) == 7.0
    assert step_s(start, work, wait) == 4.0


def test_a_frozen_encoder_that_runs_ahead_pays_its_forwards_a_step_early() -> None:
    graph = graph_of(node("vision", "vision", range(1)), node(LANGUAGE, LANGUAGE, range(1, 2)))
    ops = (Op(OpKind.FORWARD, "vision", 0), Op(OpKind.RUN_AHEAD, "vision", 0))
    schedule = Schedule("by hand", (ops, ()), 1, {})
    timeline = simulate(schedule, graph, uniform_costs(graph))
    assert [each.duration_s for each in timeline.slices[0]] == [0.0, 1.0]


# Memory.


@given(st.sampled_from([2, 4]), st.integers(1, 8), st.sampled_from(["1f1b", "zero_bubble"]))
def test_peak_memory_is_what_the_schedule_declares_in_flight(
    stages: int, microbatches: int, pipeline: Pipeline
) -> None:
    graph = llm_chain(stages)
    schedule = training_schedule(graph, microbatches, microbatches, pipeline)
    timeline = simulate(schedule, graph, uniform_costs(graph, activation_bytes=100.0))
    declared = [100.0 * schedule.in_flight[stage.name] for stage in graph.language]
    assert list(timeline.peak_bytes) == declared


def test_a_split_backward_holds_its_activations_until_the_weights_part() -> None:
    kinds = (OpKind.FORWARD, OpKind.BACKWARD_INPUT, OpKind.FORWARD, OpKind.BACKWARD_WEIGHT)
    ops = [computing(k, "a", n) for k, n in zip(kinds, (0, 0, 1, 0), strict=True)]
    costs = CostModel({}, activation_bytes={"a": (5.0, 7.0)})
    assert peak_bytes([*ops, computing(OpKind.BACKWARD, "a", 1)], costs) == 12.0


def test_a_forward_without_a_backward_holds_nothing() -> None:
    graph = disjoint_graph(trainable=False)
    timeline = simulate(training_schedule(graph, 3, 3), graph, uniform_costs(graph))
    assert timeline.peak_bytes[:2] == (0.0, 0.0)


# What holds for every schedule.


@given(training_cases(), st.data())
def test_every_built_schedule_runs_to_its_end(case: TrainingCase, data: st.DataObject) -> None:
    schedule = case.schedule
    timeline = simulate(schedule, case.graph, data.draw(costs_for(case.graph)))
    assert [tuple(each.op for each in slices) for slices in timeline.slices] == list(schedule.ops)


@given(training_cases())
def test_every_evaluation_runs_to_its_end(case: TrainingCase) -> None:
    schedule = evaluation_schedule(case.graph, case.num_microbatches)
    timeline = simulate(schedule, case.graph, uniform_costs(case.graph))
    assert [tuple(each.op for each in slices) for slices in timeline.slices] == list(schedule.ops)


@given(training_cases(), st.data())
def test_slices_of_a_rank_never_overlap(case: TrainingCase, data: st.DataObject) -> None:
    timeline = simulate(case.schedule, case.graph, data.draw(costs_for(case.graph)))
    for slices in timeline.slices:
        ends_s = [0.0, *(each.end_s for each in slices)]
        assert all(end <= each.begin_s for end, each in zip(ends_s, slices, strict=False))
        assert all(each.begin_s <= each.end_s for each in slices)


@given(training_cases(), st.data())
def test_no_rank_is_busy_for_longer_than_the_step(case: TrainingCase, data: st.DataObject) -> None:
    timeline = simulate(case.schedule, case.graph, data.draw(costs_for(case.graph)))
    assert timeline.step_time_s >= max(timeline.busy_s)
    assert all(0.0 <= bubble <= 1.0 for bubble in timeline.bubble)


@given(training_cases(), st.data(), st.sampled_from([0.5, 2.0, 8.0]))
def test_costs_times_k_are_times_times_k(
    case: TrainingCase, data: st.DataObject, factor: float
) -> None:
    costs = data.draw(costs_for(case.graph))
    once = simulate(case.schedule, case.graph, costs)
    slower = simulate(case.schedule, case.graph, scaled(costs, factor))
    assert [[each.end_s for each in slices] for slices in slower.slices] == [
        [factor * each.end_s for each in slices] for slices in once.slices
    ]


@given(training_cases(), st.data())
def test_nothing_is_used_before_it_is_there(case: TrainingCase, data: st.DataObject) -> None:
    graph, costs = case.graph, data.draw(costs_for(case.graph))
    timeline = simulate(case.schedule, graph, costs)
    slices = [by_op(timeline, rank) for rank in range(graph.num_ranks)]
    for of_rank in slices:
        for op, each in of_rank.items():
            for needed in inputs_of(op, graph):
                if needed in of_rank:
                    assert of_rank[needed].end_s <= each.begin_s
            if op.kind.is_recv:
                edge = graph.edge(op.boundary)
                gradient = op.kind.is_gradient
                send = OpKind.SEND_BACKWARD if gradient else OpKind.SEND_FORWARD
                senders = graph.nodes[edge.destination if gradient else edge.source].places
                sent = carrying(send, op.boundary, op.microbatch)
                launched_s = max(slices[rank][sent].end_s for rank in senders)
                assert launched_s + costs.transfer_s(op) <= each.end_s


@given(training_cases(), st.data())
def test_one_rank_of_a_kind_stands_for_all_of_them(case: TrainingCase, data: st.DataObject) -> None:
    """An op that costs nothing and names its rank makes every rank a kind of its own."""
    schedule, costs = case.schedule, data.draw(costs_for(case.graph))
    marked = replace(
        schedule,
        ops=tuple(
            (*ops, Op(OpKind.OPTIMIZER_STEP, f"rank {rank}"))
            for rank, ops in enumerate(schedule.ops)
        ),
    )
    assert alike_ranks(marked, case.graph) == tuple(range(case.graph.num_ranks))
    alone, together = (simulate(each, case.graph, costs) for each in (marked, schedule))
    assert [slices[:-1] for slices in alone.slices] == list(together.slices)


@given(training_cases())
def test_reports_are_one_per_kind_of_rank(case: TrainingCase) -> None:
    timeline = simulate(case.schedule, case.graph, uniform_costs(case.graph))
    reports: list[RankReport] = timeline.reports()
    assert [report.place for report in reports] == sorted(set(timeline.alike))
    for report in reports:
        assert [span.name for span in report.spans] == [
            str(op) for op in case.schedule.ops[report.place]
        ]


def test_a_deadlock_names_the_ops_that_wait() -> None:
    waits = carrying(OpKind.RECV_BACKWARD, BOUNDARY, 0)
    early = moved_before(waits, carrying(OpKind.SEND_FORWARD, BOUNDARY, 0))
    graph = disjoint_graph()
    schedule = edited(training_schedule(graph, 4, 4), [0, 1], early)
    with pytest.raises(PlanError, match="deadlocks") as caught:
        simulate(schedule, graph, uniform_costs(graph))
    assert f"rank 0 at '{waits}'" in str(caught.value)
    assert f"rank 2 at 'recv_forward {BOUNDARY} 0'" in str(caught.value)


def test_1024_ranks_and_64_microbatches_take_seconds() -> None:
    graph = graph_of_modules(
        pipelined("vision", "encoders", range(256), 1, 8),
        pipelined(LANGUAGE, LANGUAGE, range(256, 1024), 8, 8),
    )
    schedule, begin_s = training_schedule(graph, 64, 64), perf_counter()
    timeline = simulate(schedule, graph, uniform_costs(graph))
    assert perf_counter() - begin_s < 5.0
    assert len(timeline.slices) == 1024 and timeline.step_time_s == (64 + 8) * 3


@given(training_cases())
def test_one_rank_of_each_kind_takes_as_long_as_all(case: TrainingCase) -> None:
    costs = uniform_costs(case.graph, transfer_s=0.25)
    all_ranks = simulate(case.schedule, case.graph, costs)
    schedule, graph = one_of_each(case.schedule, case.graph)
    assert simulate(schedule, graph, costs).step_time_s == all_ranks.step_time_s
    assert len(schedule.ops) == len(all_ranks.kinds)
