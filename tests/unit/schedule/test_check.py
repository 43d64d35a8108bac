"""The checker refuses every planted fault and names the op at fault."""

import re
import time
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from disagg_train.errors import PlanError
from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.language import Pipeline
from disagg_train.schedule.ops import Op, OpKind, Schedule
from tests.unit.schedule.faults import (
    Edit,
    carrying,
    computing,
    edited,
    moved_before,
    ops_of,
    ranks_of,
    ranks_with,
    swapped,
    twice,
    without,
)
from tests.unit.schedule.strategies import (
    LANGUAGE,
    TrainingCase,
    colocated_graph,
    disjoint_graph,
    graph_of,
    graph_of_modules,
    mixed_graph,
    node,
    pipelined,
    pipelined_graph,
    training_cases,
)

BOUNDARY = "vision->language"
COMPUTE = (OpKind.FORWARD, OpKind.BACKWARD)
TRANSFERS = (
    OpKind.SEND_FORWARD,
    OpKind.RECV_FORWARD,
    OpKind.SEND_BACKWARD,
    OpKind.RECV_BACKWARD,
)
OF_THE_STEP = (OpKind.GRAD_SYNC, OpKind.AGREE, OpKind.OPTIMIZER_STEP)


def refusal(schedule: Schedule, graph: StageGraph) -> str:
    with pytest.raises(PlanError) as caught:
        check(schedule, graph)
    return str(caught.value)


def one_f_one_b() -> Schedule:
    return training_schedule(disjoint_graph(), 4, 4)


def broken(ranks: list[int], *edits: Edit) -> str:
    """Return the refusal of 1F1B with some ranks' ops changed."""
    schedule = one_f_one_b()
    for edit in edits:
        schedule = edited(schedule, ranks, edit)
    return refusal(schedule, disjoint_graph())


@pytest.mark.parametrize("kind", TRANSFERS)
@given(training_cases(), st.data())
def test_a_transfer_left_out_on_one_rank_is_refused(
    kind: OpKind, case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    op = drawn_op(schedule, data, kind)
    rank = data.draw(st.sampled_from(ranks_with(schedule, op)))
    message = refusal(edited(schedule, [rank], without(op)), case.graph)
    assert op.boundary in message
    assert "_forward" in message if not kind.is_gradient else "_backward" in message


@pytest.mark.parametrize("kind", COMPUTE)
@given(training_cases(), st.data())
def test_a_forward_or_backward_left_out_on_one_rank_is_refused(
    kind: OpKind, case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    op = drawn_op(schedule, data, kind)
    rank = data.draw(st.sampled_from(ranks_with(schedule, op)))
    message = refusal(edited(schedule, [rank], without(op)), case.graph)
    assert f"rank {rank} " in message and op.module in message


@pytest.mark.parametrize("kind", COMPUTE)
@given(training_cases(), st.data())
def test_a_forward_or_backward_run_twice_is_refused(
    kind: OpKind, case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    op = drawn_op(schedule, data, kind)
    rank = data.draw(st.sampled_from(ranks_with(schedule, op)))
    message = refusal(edited(schedule, [rank], twice(op)), case.graph)
    assert f"rank {rank} runs '{op}' twice" == message


@pytest.mark.parametrize("kind", OF_THE_STEP)
@given(training_cases(), st.data())
def test_an_op_of_the_step_left_out_on_one_rank_is_refused(
    kind: OpKind, case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    op = drawn_op(schedule, data, kind)
    rank = data.draw(st.sampled_from(ranks_with(schedule, op)))
    assert str(op) in refusal(edited(schedule, [rank], without(op)), case.graph)


@pytest.mark.parametrize("kind", [*COMPUTE, *TRANSFERS, *OF_THE_STEP])
@given(training_cases(), st.data())
def test_an_op_left_out_on_every_rank_is_refused(
    kind: OpKind, case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    op = drawn_op(schedule, data, kind)
    refusal(edited(schedule, ranks_with(schedule, op), without(op)), case.graph)


@pytest.mark.parametrize(
    ("send", "receive"),
    [
        (OpKind.SEND_FORWARD, OpKind.RECV_FORWARD),
        (OpKind.SEND_BACKWARD, OpKind.RECV_BACKWARD),
    ],
)
@pytest.mark.parametrize("microbatch", range(4))
def test_a_transfer_left_out_on_both_sides_is_refused(
    send: OpKind, receive: OpKind, microbatch: int
) -> None:
    edits = [without(carrying(kind, BOUNDARY, microbatch)) for kind in (send, receive)]
    message = broken([0, 1, 2, 3], *edits)
    assert f"{BOUNDARY} {microbatch}" in message


def drawn_op(schedule: Schedule, data: st.DataObject, kind: OpKind) -> Op:
    """Draw an op of a kind; a job that trains nothing needs no op of the step."""
    ops = ops_of(schedule, kind)
    assume(ops)
    assume(kind is not OpKind.AGREE or ops_of(schedule, OpKind.OPTIMIZER_STEP))
    return data.draw(st.sampled_from(ops))


@given(training_cases(), st.data())
def test_two_transfers_of_a_boundary_in_another_order_on_one_rank_are_refused(
    case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    first = drawn_op(schedule, data, data.draw(st.sampled_from(TRANSFERS)))
    second = replace(first, microbatch=(first.microbatch + 1) % case.num_microbatches)
    assume(first != second)
    rank = data.draw(st.sampled_from(ranks_with(schedule, first)))
    message = refusal(edited(schedule, [rank], swapped(first, second)), case.graph)
    assert first.boundary in message


@given(training_cases(), st.data())
def test_one_activation_more_than_declared_is_refused(
    case: TrainingCase, data: st.DataObject
) -> None:
    schedule = case.schedule
    modules = [name for name in case.graph.nodes if case.graph.runs_backward(name)]
    assume(modules)
    module = data.draw(st.sampled_from(modules))
    bound = schedule.in_flight[module] - 1
    tighter = replace(schedule, in_flight={**schedule.in_flight, module: bound})
    complaint = rf"at 'forward {module} \d+' holds {bound + 1} activations, bound {bound}$"
    assert re.search(complaint, refusal(tighter, case.graph))


def test_a_forward_that_runs_ahead_of_the_bound_is_refused() -> None:
    early = computing(OpKind.FORWARD, "vision", 2)
    message = broken([0, 1], moved_before(early, computing(OpKind.BACKWARD, "vision", 0)))
    assert message == "rank 0 at 'forward vision 2' holds 3 activations, bound 2"


def test_a_backward_before_its_forward_is_refused() -> None:
    forward, backward = (computing(kind, LANGUAGE, 1) for kind in COMPUTE)
    message = broken([2, 3], swapped(forward, backward))
    assert message == "rank 2 runs 'backward language 1' before 'forward language 1'"


@given(training_cases(), st.data())
def test_an_optimizer_step_before_agree_is_refused(case: TrainingCase, data: st.DataObject) -> None:
    schedule = case.schedule
    step = drawn_op(schedule, data, OpKind.OPTIMIZER_STEP)
    ranks = ranks_with(schedule, step)
    message = refusal(edited(schedule, ranks, moved_before(step, Op(OpKind.AGREE))), case.graph)
    assert message == f"rank {ranks[0]} runs '{step}' before 'agree'"


def test_gradients_that_are_settled_after_agree_are_refused() -> None:
    op = Op(OpKind.GRAD_SYNC, "vision")
    message = broken([0, 1], moved_before(op, Op(OpKind.OPTIMIZER_STEP, "vision")))
    assert message == f"rank 0 runs '{op}' after 'agree'"


def test_gradients_that_change_while_they_are_summed_are_refused() -> None:
    op = Op(OpKind.BACKWARD, "vision", 3)
    message = broken([0, 1], moved_before(op, Op(OpKind.GRAD_SYNC, "vision")))
    assert message == f"rank 0 runs '{op}' after 'start_grad_sync vision'"


def test_gradients_that_are_settled_before_their_sum_is_started_are_refused() -> None:
    op = Op(OpKind.GRAD_SYNC, "vision")
    start = Op(OpKind.START_GRAD_SYNC, "vision")
    assert broken([0, 1], moved_before(op, start)) == f"rank 0 runs '{op}' before '{start}'"


def test_a_weight_gradient_before_its_input_gradient_is_refused() -> None:
    graph = pipelined_graph()
    schedule = training_schedule(graph, 3, 3, "zero_bubble")
    weight, given = (
        Op(kind, "language.1", 1) for kind in (OpKind.BACKWARD_WEIGHT, OpKind.BACKWARD_INPUT)
    )
    message = refusal(edited(schedule, [3], moved_before(weight, given)), graph)
    assert message == f"rank 3 runs '{weight}' before '{given}'"


def test_a_stage_may_split_its_backward_only_as_a_whole() -> None:
    graph = pipelined_graph()
    schedule = training_schedule(graph, 3, 3, "zero_bubble")
    weight = Op(OpKind.BACKWARD_WEIGHT, "language.0", 2)
    assert refusal(edited(schedule, [2], without(weight)), graph) == f"rank 2 never runs '{weight}'"


def test_running_ahead_with_weights_that_train_is_refused() -> None:
    ahead = Op(OpKind.RUN_AHEAD, "vision", 0)
    message = broken([0, 1], lambda ops: [*ops[:-1], ahead, ops[-1]])
    assert message == f"rank 0 has no part in '{ahead}'"


def test_an_agree_that_one_rank_never_reaches_is_refused() -> None:
    graph = disjoint_graph(trainable=False)
    schedule = edited(training_schedule(graph, 2, 2), [0], without(Op(OpKind.AGREE)))
    assert "'agree'" in refusal(schedule, graph)


def test_waiting_for_gradients_before_sending_rows_is_a_cycle() -> None:
    waits = carrying(OpKind.RECV_BACKWARD, BOUNDARY, 0)
    message = broken([0, 1], moved_before(waits, carrying(OpKind.SEND_FORWARD, BOUNDARY, 0)))
    assert "deadlocks" in message
    assert f"rank 0 at '{waits}'" in message
    assert f"rank 2 at 'recv_forward {BOUNDARY} 0'" in message


def test_lane_partners_that_wait_for_each_other_are_a_cycle() -> None:
    graph = graph_of(node(LANGUAGE, LANGUAGE, range(2), lane_size=2, trainable=False))
    schedule = training_schedule(graph, 2, 2)
    first, second = (computing(OpKind.FORWARD, LANGUAGE, i) for i in range(2))
    message = refusal(edited(schedule, [1], swapped(first, second)), graph)
    assert f"rank 0 at '{first}'" in message and f"rank 1 at '{second}'" in message


def test_two_groups_that_each_wait_for_the_others_sync_are_a_cycle() -> None:
    graph = colocated_graph()
    schedule = training_schedule(graph, 1, 1)
    syncs = [Op(OpKind.GRAD_SYNC, module) for module in ("vision", LANGUAGE)]
    message = refusal(edited(schedule, [1], swapped(*syncs)), graph)
    assert f"rank 0 at '{syncs[0]}'" in message and f"rank 1 at '{syncs[1]}'" in message


def test_tied_stages_that_settle_in_another_order_than_their_neighbours_are_a_cycle() -> None:
    """The first stage waits for the last one's copy, which waits for it in the encoder's sync."""
    first, last = pipelined(LANGUAGE, LANGUAGE, range(2), 2, 1)
    graph = graph_of_modules([node("vision", LANGUAGE, range(2))], [first, last])
    schedule = training_schedule(graph, 2, 2)
    syncs = [Op(OpKind.GRAD_SYNC, module) for module in ("vision", last.name)]
    swaps = edited(schedule, [1], swapped(*syncs))
    check(swaps, graph)
    message = refusal(swaps, replace(graph, tied=(first.name, last.name)))
    assert f"rank 0 at '{syncs[0]}'" in message and f"rank 1 at '{syncs[1]}'" in message


def test_a_window_longer_than_the_encoders_warmup_is_a_cycle() -> None:
    """The LLM wants all rows first; the encoder wants gradients after its second forward."""
    message = broken([2, 3], receives_first)
    assert "deadlocks" in message
    assert f"rank 0 at 'recv_backward {BOUNDARY} 0'" in message
    assert f"rank 2 at 'recv_forward {BOUNDARY} 2'" in message


def receives_first(ops: list[Op]) -> list[Op]:
    return sorted(ops, key=lambda op: op.kind is not OpKind.RECV_FORWARD)


def misplaced(graph: StageGraph, module: str, op: Op, target: Op) -> str:
    """Return the refusal of a schedule in which one module's op runs too early."""
    schedule = training_schedule(graph, 3, 3)
    return refusal(edited(schedule, ranks_of(graph, module), moved_before(op, target)), graph)


def test_the_llm_may_not_run_a_microbatch_before_it_received_the_rows() -> None:
    forward = computing(OpKind.FORWARD, LANGUAGE, 0)
    receive = carrying(OpKind.RECV_FORWARD, BOUNDARY, 0)
    assert str(forward) in misplaced(disjoint_graph(), LANGUAGE, forward, receive)


def test_an_encoder_may_not_send_rows_before_their_forward() -> None:
    send = carrying(OpKind.SEND_FORWARD, BOUNDARY, 0)
    forward = computing(OpKind.FORWARD, "vision", 0)
    assert str(send) in misplaced(disjoint_graph(), "vision", send, forward)


def test_the_llm_may_not_send_gradients_before_their_backward() -> None:
    send = carrying(OpKind.SEND_BACKWARD, BOUNDARY, 0)
    backward = computing(OpKind.BACKWARD, LANGUAGE, 0)
    assert str(send) in misplaced(disjoint_graph(), LANGUAGE, send, backward)


def test_an_encoder_may_not_run_backward_before_it_received_the_gradients() -> None:
    backward = computing(OpKind.BACKWARD, "vision", 0)
    receive = carrying(OpKind.RECV_BACKWARD, BOUNDARY, 0)
    assert str(backward) in misplaced(disjoint_graph(), "vision", backward, receive)


@pytest.mark.parametrize(
    "stray",
    [
        computing(OpKind.FORWARD, LANGUAGE, 0),
        computing(OpKind.FORWARD, "audio", 0),
        carrying(OpKind.RECV_FORWARD, BOUNDARY, 0),
        carrying(OpKind.SEND_FORWARD, "audio->language", 0),
        Op(OpKind.OPTIMIZER_STEP, LANGUAGE),
    ],
    ids=str,
)
def test_an_op_of_a_module_or_boundary_that_the_rank_has_no_part_in_is_refused(stray: Op) -> None:
    message = broken([0], lambda ops: [*ops, stray])
    assert "rank 0" in message and str(stray) in message


def test_a_microbatch_that_the_step_does_not_have_is_refused() -> None:
    extra = [computing(kind, LANGUAGE, 9) for kind in COMPUTE]
    message = broken([2, 3], lambda ops: [*extra, *ops])
    assert "rank 2" in message and str(extra[0]) in message


def test_an_evaluation_that_skips_a_microbatch_is_refused() -> None:
    graph = mixed_graph()
    schedule = evaluation_schedule(graph, 3)
    skipped = computing(OpKind.EVALUATE, LANGUAGE, 1)
    message = refusal(edited(schedule, [1], without(skipped)), graph)
    assert re.fullmatch(r"rank 1 never runs '\w+ language 1'", message)


def test_an_evaluation_with_a_dropped_send_is_refused() -> None:
    schedule = evaluation_schedule(disjoint_graph(), 2)
    dropped = carrying(OpKind.SEND_FORWARD, BOUNDARY, 1)
    message = refusal(edited(schedule, [1], without(dropped)), disjoint_graph())
    assert "rank 1" in message and "send_forward" in message and BOUNDARY in message


@pytest.mark.parametrize(("vpp", "pipeline"), [(1, "1f1b"), (1, "zero_bubble"), (4, "1f1b")])
def test_1024_ranks_and_64_microbatches_are_checked_within_5_seconds(
    vpp: int, pipeline: Pipeline
) -> None:
    graph = graph_of_modules(
        pipelined("vision", "encoders", range(256), 1, 4),
        pipelined(LANGUAGE, LANGUAGE, range(256, 1024), 8, 8, vpp=vpp),
    )
    schedule = training_schedule(graph, 64, 64, pipeline)
    begin_s = time.perf_counter()
    check(schedule, graph)
    assert time.perf_counter() - begin_s < 5
