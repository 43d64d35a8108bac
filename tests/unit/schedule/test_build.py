"""Built schedules: every random one is proven, and the golden ones stay as they are.

Golden files: run with ``REGENERATE_GOLDEN=1`` to write them anew, then read the diff.
"""

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.check import check
from disagg_train.schedule.evaluation import evaluation_schedule
from disagg_train.schedule.graph import StageGraph, StageNode
from disagg_train.schedule.ops import Op, OpKind, Schedule
from tests.unit.schedule.strategies import (
    LANGUAGE,
    TrainingCase,
    colocated_graph,
    disjoint_graph,
    graph_of_modules,
    graphs,
    interleaved_graph,
    mixed_graph,
    pipelined,
    pipelined_graph,
    training_cases,
)

GOLDEN = Path(__file__).parents[2] / "golden"

GOLDEN_SCHEDULES: Mapping[str, Callable[[], Schedule]] = {
    "one_f_one_b_4_microbatches": lambda: training_schedule(disjoint_graph(), 4, 4),
    "one_f_one_b_1_microbatch": lambda: training_schedule(disjoint_graph(), 1, 1),
    "one_f_one_b_frozen_encoder": lambda: training_schedule(disjoint_graph(False), 3, 3),
    "colocated_one_window": lambda: training_schedule(colocated_graph(), 3, 3),
    "colocated_windows_of_2": lambda: training_schedule(colocated_graph(), 3, 2),
    "mixed_windows_of_2": lambda: training_schedule(mixed_graph(), 3, 2),
    "pipelined_4_microbatches": lambda: training_schedule(pipelined_graph(), 4, 4),
    "zero_bubble": lambda: training_schedule(pipelined_graph(), 4, 4, "zero_bubble"),
    "gpipe": lambda: training_schedule(pipelined_graph(), 3, 3, "gpipe"),
    "interleaved": lambda: training_schedule(interleaved_graph(), 4, 4),
    "deferral_span_1": lambda: training_schedule(pipelined_graph(span=1), 4, 4),
    "evaluation_interleaved": lambda: evaluation_schedule(interleaved_graph(), 2),
    "evaluation_pipelined": lambda: evaluation_schedule(pipelined_graph(), 2),
    "evaluation_disjoint": lambda: evaluation_schedule(disjoint_graph(), 2),
    "evaluation_mixed": lambda: evaluation_schedule(mixed_graph(), 2),
}


def as_text(schedule: Schedule) -> str:
    lines = [f"rank {rank}: {op}" for rank, ops in enumerate(schedule.ops) for op in ops]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", GOLDEN_SCHEDULES)
def test_a_schedule_is_its_golden_file(name: str) -> None:
    path = GOLDEN / f"schedule_{name}.txt"
    text = as_text(GOLDEN_SCHEDULES[name]())
    if os.environ.get("REGENERATE_GOLDEN") == "1":
        path.write_text(text)
    assert path.exists(), f"no {path}; run with REGENERATE_GOLDEN=1 to write it"
    assert text == path.read_text(), f"differs from {path}; REGENERATE_GOLDEN=1 writes it anew"


def of_kind(schedule: Schedule, *kinds: OpKind) -> list[Op]:
    return [op for ops in schedule.ops for op in ops if op.kind in kinds]


@given(training_cases())
def test_every_training_schedule_passes_the_checker(case: TrainingCase) -> None:
    check(case.schedule, case.graph)


@given(graphs(), st.integers(1, 6))
def test_every_evaluation_schedule_passes_the_checker(
    graph: StageGraph, num_microbatches: int
) -> None:
    check(evaluation_schedule(graph, num_microbatches), graph)


@given(training_cases())
def test_every_rank_runs_exactly_its_modules_forwards_and_backwards(case: TrainingCase) -> None:
    for rank, ops in enumerate(case.schedule.ops):
        found = sorted(str(op) for op in ops if op.kind.is_compute)
        assert found == sorted(expected_compute(case, rank))


def expected_compute(case: TrainingCase, rank: int) -> list[str]:
    return [
        f"{kind} {node.name} {microbatch}"
        for node in case.graph.nodes.values()
        if rank in node.places
        for kind, count in kinds_and_counts(case, node).items()
        for microbatch in range(count)
    ]


def kinds_and_counts(case: TrainingCase, node: StageNode) -> dict[str, int]:
    kinds = ["forward"]
    splits = case.pipeline == "zero_bubble" and node.module == LANGUAGE
    if case.graph.runs_backward(node.name):
        kinds += ["backward_input"] if splits or not node.trainable else ["backward"]
        kinds += ["backward_weight"] * (splits and node.trainable)
    return dict.fromkeys(kinds, case.num_microbatches) | {"run_ahead": most_ahead(case, node)}


def most_ahead(case: TrainingCase, node: StageNode) -> int:
    """Frozen stages on ranks of their own, with no stage before them, run ahead."""
    waits = case.graph.runs_backward(node.name) or case.graph.into(node.name)
    if waits or node.group == LANGUAGE:
        return 0
    return min(case.graph.stages_after(node.name), case.num_microbatches)


@given(training_cases())
def test_every_rank_agrees_once_and_updates_its_trainable_modules(case: TrainingCase) -> None:
    for rank, ops in enumerate(case.schedule.ops):
        trainable = {n.name for n in case.graph.nodes.values() if rank in n.places and n.trainable}
        assert [op for op in ops if op.kind is OpKind.AGREE] == [Op(OpKind.AGREE)]
        for kind in (OpKind.START_GRAD_SYNC, OpKind.GRAD_SYNC, OpKind.OPTIMIZER_STEP):
            modules = [op.module for op in ops if op.kind is kind]
            assert sorted(modules) == sorted(trainable)


@given(training_cases())
def test_a_frozen_encoder_has_no_backward_and_no_backward_boundary_ops(case: TrainingCase) -> None:
    boundaries = of_kind(case.schedule, OpKind.SEND_BACKWARD, OpKind.RECV_BACKWARD)
    carrying = {e.name for e in case.graph.edges if case.graph.runs_backward(e.source)}
    assert {op.boundary for op in boundaries} == carrying
    for op in of_kind(case.schedule, OpKind.BACKWARD):
        assert case.graph.runs_backward(op.module)


@given(training_cases())
def test_a_stage_holds_what_its_schedule_says(case: TrainingCase) -> None:
    graph = case.graph
    for name, held in case.schedule.in_flight.items():
        assert held <= case.num_microbatches
        if not graph.runs_backward(name):
            assert held == 0
        elif graph.nodes[name] in graph.language and case.window >= case.num_microbatches:
            assert held == min(most_in_flight(case, name), case.num_microbatches)


def most_in_flight(case: TrainingCase, stage: str) -> int:
    """Return the literature's number for a stage of the LLM."""
    graph, after = case.graph, case.graph.stages_after(stage)
    if case.pipeline == "gpipe":
        return case.num_microbatches
    if case.pipeline == "zero_bubble" and graph.nodes[stage].trainable:
        return len(graph.language)
    if len(graph.stages_of_language(graph.nodes[stage])) > 1:
        return case.schedule.in_flight[stage]
    return after + 1


@given(training_cases())
def test_a_colocated_encoder_holds_a_window_whatever_is_put_off(
    case: TrainingCase,
) -> None:
    for stage in colocated_encoders(case.graph):
        held = case.schedule.in_flight[stage]
        window = min(case.window, case.num_microbatches)
        assert held == (window if case.graph.runs_backward(stage) else 0)


@given(st.integers(2, 6), st.integers(2, 4), st.integers(1, 5))
def test_interleaving_holds_as_many_passes_as_megatrons(pp: int, vpp: int, groups: int) -> None:
    count = groups * pp
    graph = graph_of_modules(pipelined(LANGUAGE, LANGUAGE, range(pp), pp, 1, vpp=vpp))
    schedule = training_schedule(graph, count, count)
    check(schedule, graph)
    for pp_rank in range(pp):
        stages = graph.stages_of_language(graph.language[pp_rank])
        held = most_held(schedule.ops[pp_rank], stages)
        assert held == min(2 * (pp - pp_rank - 1) + (vpp - 1) * pp + 1, vpp * count)


def most_held(ops: tuple[Op, ...], stages: Collection[str]) -> int:
    held, most = 0, 0
    for op in ops:
        if op.module in stages and op.kind in (OpKind.FORWARD, OpKind.BACKWARD):
            held += 1 if op.kind is OpKind.FORWARD else -1
            most = max(most, held)
    return most


def colocated_encoders(graph: StageGraph) -> list[str]:
    nodes = graph.nodes.values()
    return [n.name for n in nodes if n.group == LANGUAGE and n.module != LANGUAGE]


@given(training_cases())
def test_ranks_that_host_the_same_stages_run_the_same_ops(case: TrainingCase) -> None:
    ops_of_stages: dict[tuple[str, ...], set[tuple[Op, ...]]] = {}
    for place, ops in enumerate(case.schedule.ops):
        stages = tuple(node.name for node in case.graph.stages_of(place))
        ops_of_stages.setdefault(stages, set()).add(ops)
    assert all(len(lists) == 1 for lists in ops_of_stages.values())


@given(training_cases())
def test_a_schedule_is_named_by_how_its_encoders_sit(case: TrainingCase) -> None:
    window = min(case.window, case.num_microbatches)
    colocated = colocated_encoders(case.graph)
    interleaves = len(case.graph.stages_of_language(case.graph.language[0])) > 1
    pipeline = "interleaved 1f1b" if interleaves else case.pipeline
    assert case.schedule.name == pipeline + (f", windows of {window}" if colocated else "")


@given(graphs(), st.integers(1, 6))
def test_evaluation_has_no_gradients_and_no_updates(graph: StageGraph, count: int) -> None:
    schedule = evaluation_schedule(graph, count)
    kinds = {op.kind for op in of_kind(schedule, *OpKind)}
    assert kinds == {OpKind.FORWARD, OpKind.SEND_FORWARD, OpKind.RECV_FORWARD, OpKind.EVALUATE}
    evaluated = [op.microbatch for op in of_kind(schedule, OpKind.EVALUATE)]
    ranks = len({place for stage in graph.language for place in stage.places})
    assert evaluated == list(range(count)) * ranks
