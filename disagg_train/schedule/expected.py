"""What the stage graph asks of a rank: which ops it runs, and what each of them consumes."""

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind


def expected_ops(
    stages: frozenset[str], graph: StageGraph, num_microbatches: int, training: bool
) -> list[Op]:
    """Return every op of a rank once, in no order that matters.

    Args:
        stages: the stages that the rank hosts.
        graph: the stage graph.
        num_microbatches: of the step.
        training: a training step, or else an evaluation.
    """
    ops = [Op(OpKind.AGREE)] if training else []
    for name in stages:
        node = graph.nodes[name]
        if training and node.trainable:
            ops += [Op(OpKind.GRAD_SYNC, name), Op(OpKind.OPTIMIZER_STEP, name)]
        for kind in _compute_kinds(name, graph, training):
            ops += [Op(kind, name, microbatch) for microbatch in range(num_microbatches)]
    for edge in graph.edges:
        if not training and graph.nodes[edge.source] in graph.language:
            continue  # an evaluation's op passes rows on within the LLM by itself
        carries_gradient = training and graph.runs_backward(edge.source)
        kinds = [(edge.source, OpKind.SEND_FORWARD), (edge.destination, OpKind.RECV_FORWARD)]
        if carries_gradient:
            kinds.append((edge.source, OpKind.RECV_BACKWARD))
            kinds.append((edge.destination, OpKind.SEND_BACKWARD))
        for stage, kind in kinds:
            if stage in stages:
                ops += [Op(kind, "", mb, edge.name) for mb in range(num_microbatches)]
    return ops


def _compute_kinds(stage: str, graph: StageGraph, training: bool) -> list[OpKind]:
    if not training:
        scores = graph.nodes[stage] in graph.language
        return [OpKind.EVALUATE if scores else OpKind.FORWARD]
    return [OpKind.FORWARD] + [OpKind.BACKWARD] * graph.runs_backward(stage)


def inputs_of(op: Op, graph: StageGraph) -> list[Op]:
    """Return the ops that make what ``op`` consumes; those on the same rank must precede it."""
    microbatch = op.microbatch
    if op.kind in (OpKind.FORWARD, OpKind.EVALUATE):
        into = graph.into(op.module)
        return [Op(OpKind.RECV_FORWARD, "", microbatch, edge.name) for edge in into]
    if op.kind is OpKind.BACKWARD:
        out = graph.out_of(op.module)
        receives = [Op(OpKind.RECV_BACKWARD, "", microbatch, edge.name) for edge in out]
        return [Op(OpKind.FORWARD, op.module, microbatch), *receives]
    if op.kind is OpKind.SEND_FORWARD:
        return [Op(OpKind.FORWARD, graph.edge(op.boundary).source, microbatch)]
    if op.kind is OpKind.SEND_BACKWARD:
        return [Op(OpKind.BACKWARD, graph.edge(op.boundary).destination, microbatch)]
    return []
