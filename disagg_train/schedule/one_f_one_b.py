"""1F1B for the encoders that sit on ranks of their own.

    encoder    F0 F1 B0 F2 B1 F3 B2 B3
    LLM           F0 B0 F1 B1 F2 B2 F3 B3

An encoder warms up with one forward per stage that follows it (here the LLM, one stage),
then alternates one forward and one backward. Every forward sends its rows, every backward
first receives its gradients.
"""

from disagg_train.schedule.graph import Edge, ModuleGraph
from disagg_train.schedule.ops import Op, OpKind


def encoder_ops(
    graph: ModuleGraph, edges: tuple[Edge, ...], num_microbatches: int, stages_after: int = 1
) -> list[Op]:
    """Return the forwards and backwards of a group of encoders, without the update.

    Args:
        graph: the module graph.
        edges: boundaries of the group's encoders.
        num_microbatches: of the step.
        stages_after: pipeline stages between these encoders and the end of the path.
    """
    warmup = min(stages_after, num_microbatches)
    ops: list[Op] = []
    for microbatch in range(num_microbatches):
        ops += forwards(edges, microbatch)
        if microbatch >= warmup:
            ops += backwards(graph, edges, microbatch - warmup)
    for microbatch in range(num_microbatches - warmup, num_microbatches):
        ops += backwards(graph, edges, microbatch)
    return ops


def forwards(edges: tuple[Edge, ...], microbatch: int) -> list[Op]:
    """Return one microbatch's forward and send of every encoder."""
    ops = []
    for edge in edges:
        ops.append(Op(OpKind.FORWARD, edge.source, microbatch))
        ops.append(Op(OpKind.SEND_FORWARD, microbatch=microbatch, boundary=edge.name))
    return ops


def backwards(graph: ModuleGraph, edges: tuple[Edge, ...], microbatch: int) -> list[Op]:
    """Return one microbatch's receive and backward of every encoder that trains."""
    ops = []
    for edge in edges:
        if graph.runs_backward(edge.source):
            ops.append(Op(OpKind.RECV_BACKWARD, microbatch=microbatch, boundary=edge.name))
            ops.append(Op(OpKind.BACKWARD, edge.source, microbatch))
    return ops
