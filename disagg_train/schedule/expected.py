"""What the stage graph asks of a rank: which ops it runs, and what each of them consumes."""

from collections.abc import Iterable

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.upstream import may_run_ahead


def expected_ops(
    stages: frozenset[str], graph: StageGraph, num_microbatches: int, found: Iterable[Op]
) -> list[Op]:
    """Return every op of a training step on a rank once, in no order that matters.

    A schedule is free to split a stage's backward, and to run frozen encoders ahead.

    Args:
        stages: the stages that the rank hosts.
        graph: the stage graph.
        num_microbatches: of the step.
        found: the ops of the rank, which say what the schedule chose.
    """
    chosen = {(op.kind, op.module) for op in found}
    ops = [Op(OpKind.AGREE)]
    for name in stages:
        if graph.nodes[name].trainable:
            ops += [Op(kind, name) for kind in _UPDATE]
        split = (OpKind.BACKWARD_WEIGHT, name) in chosen
        for kind in (OpKind.FORWARD, *_backward_kinds(name, graph, split)):
            ops += [Op(kind, name, microbatch) for microbatch in range(num_microbatches)]
    return (
        ops
        + _ahead(stages, graph, num_microbatches, found)
        + _transfers(stages, graph, num_microbatches)
    )


_UPDATE = (OpKind.START_GRAD_SYNC, OpKind.GRAD_SYNC, OpKind.OPTIMIZER_STEP)


def _backward_kinds(stage: str, graph: StageGraph, split: bool) -> tuple[OpKind, ...]:
    if not graph.runs_backward(stage):
        return ()
    if not graph.nodes[stage].trainable:
        return (OpKind.BACKWARD_INPUT,)
    return (OpKind.BACKWARD_INPUT, OpKind.BACKWARD_WEIGHT) if split else (OpKind.BACKWARD,)


def _ahead(
    stages: frozenset[str], graph: StageGraph, num_microbatches: int, found: Iterable[Op]
) -> list[Op]:
    """Return the forwards run ahead: as many as the schedule likes, the first ones."""
    ops = []
    for stage in stages:
        if may_run_ahead(graph, stage):
            count = sum((op.kind, op.module) == (OpKind.RUN_AHEAD, stage) for op in found)
            microbatches = range(min(count, num_microbatches))
            ops += [Op(OpKind.RUN_AHEAD, stage, microbatch) for microbatch in microbatches]
    return ops


def _transfers(stages: frozenset[str], graph: StageGraph, num_microbatches: int) -> list[Op]:
    ops = []
    for edge in graph.edges:
        kinds = [(edge.source, OpKind.SEND_FORWARD), (edge.destination, OpKind.RECV_FORWARD)]
        if graph.runs_backward(edge.source):
            kinds.append((edge.source, OpKind.RECV_BACKWARD))
            kinds.append((edge.destination, OpKind.SEND_BACKWARD))
        for stage, kind in kinds:
            if stage in stages:
                ops += [Op(kind, "", mb, edge.name) for mb in range(num_microbatches)]
    return ops


def expected_evaluation(
    stages: frozenset[str], graph: StageGraph, num_microbatches: int
) -> list[Op]:
    """Return every op of an evaluation on a rank once; rows within the LLM pass inside its op.

    Args:
        stages: the stages that the rank hosts.
        graph: the stage graph.
        num_microbatches: of the evaluation.
    """
    ops = []
    language = [node.name for node in graph.language if node.name in stages]
    for name in (*sorted(stages - set(language)), *language[:1]):
        kind = OpKind.EVALUATE if name in language else OpKind.FORWARD
        ops += [Op(kind, name, microbatch) for microbatch in range(num_microbatches)]
    for edge in graph.edges:
        if graph.nodes[edge.source] in graph.language:
            continue
        for stage, kind in (
            (edge.source, OpKind.SEND_FORWARD),
            (edge.destination, OpKind.RECV_FORWARD),
        ):
            if stage in stages:
                ops += [Op(kind, "", mb, edge.name) for mb in range(num_microbatches)]
    return ops


def change_in_flight(op: Op, graph: StageGraph) -> int:
    """Return by how many microbatches an op changes what its stage keeps for its backward."""
    if op.kind is OpKind.FORWARD:
        return int(graph.runs_backward(op.module))
    if op.kind in (OpKind.BACKWARD, OpKind.BACKWARD_WEIGHT):
        return -1
    if op.kind is OpKind.BACKWARD_INPUT and not graph.nodes[op.module].trainable:
        return -1
    return 0


def inputs_of(op: Op, graph: StageGraph) -> list[Op]:
    """Return the ops that make what ``op`` consumes; those on the same rank must precede it."""
    kinds, stage = _consumes(op, graph)
    found = [Op(kind, stage, op.microbatch) for kind in kinds]
    if op.kind in (OpKind.FORWARD, OpKind.EVALUATE):
        into = graph.into(op.module)
        found += [Op(OpKind.RECV_FORWARD, "", op.microbatch, edge.name) for edge in into]
    if op.kind.gives_input_gradient:
        found += [
            Op(OpKind.RECV_BACKWARD, "", consumer, edge.name)
            for edge in graph.out_of(op.module)
            for consumer in edge.reach.consumers(op.microbatch)
        ]
    return found


def _consumes(op: Op, graph: StageGraph) -> tuple[tuple[OpKind, ...], str]:
    """Return the kinds of ops before ``op`` in a stage, any one of which it may need."""
    if op.kind is OpKind.SEND_FORWARD:
        return (OpKind.FORWARD,), graph.edge(op.boundary).source
    if op.kind is OpKind.SEND_BACKWARD:
        return _GIVE_INPUT_GRADIENT, graph.edge(op.boundary).destination
    return _WITHIN_STAGE.get(op.kind, ()), op.module


_GIVE_INPUT_GRADIENT = (OpKind.BACKWARD, OpKind.BACKWARD_INPUT)
_WITHIN_STAGE = {
    OpKind.BACKWARD: (OpKind.FORWARD,),
    OpKind.BACKWARD_INPUT: (OpKind.FORWARD,),
    OpKind.BACKWARD_WEIGHT: (OpKind.BACKWARD_INPUT,),
    OpKind.GRAD_SYNC: (OpKind.START_GRAD_SYNC,),
}
