"""The LLM's ranks, with whatever encoders are colocated there, window by window.

    window of 2    E0 E1 | F0 B0 F1 B1 | e0 e1 | E2 E3 ...   (E encoder forward, e backward)

A window runs the colocated encoders' forwards, then the LLM's 1F1B, then the encoders'
backwards. One window of all microbatches is the three-phase schedule of the paper; smaller
windows hold fewer activations. Without colocated encoders this is the last stage of 1F1B.
"""

from disagg_train.schedule.graph import Edge, ModuleGraph
from disagg_train.schedule.one_f_one_b import backwards, forwards
from disagg_train.schedule.ops import Op, OpKind


def language_ops(graph: ModuleGraph, num_microbatches: int, window: int) -> list[Op]:
    """Return the forwards and backwards of the LLM's group, without the update.

    Args:
        graph: the module graph.
        num_microbatches: of the step.
        window: microbatches whose encoder activations are held at once.
    """
    colocated = graph.encoders(graph.language.group)
    ops: list[Op] = []
    for first in range(0, num_microbatches, window):
        microbatches = range(first, min(first + window, num_microbatches))
        for microbatch in microbatches:
            ops += forwards(colocated, microbatch)
        for microbatch in microbatches:
            ops += language_microbatch(graph, microbatch)
        for microbatch in microbatches:
            ops += backwards(graph, colocated, microbatch)
    return ops


def language_microbatch(graph: ModuleGraph, microbatch: int) -> list[Op]:
    """Return the LLM's ops of one microbatch: receive, forward, backward, send."""
    language = graph.language.name
    ops = receives(graph.edges, microbatch)
    ops.append(Op(OpKind.FORWARD, language, microbatch))
    if graph.runs_backward(language):
        ops.append(Op(OpKind.BACKWARD, language, microbatch))
    for edge in graph.edges:
        if graph.runs_backward(edge.source):
            ops.append(Op(OpKind.SEND_BACKWARD, microbatch=microbatch, boundary=edge.name))
    return ops


def receives(edges: tuple[Edge, ...], microbatch: int) -> list[Op]:
    """Return the LLM's receives of one microbatch."""
    return [Op(OpKind.RECV_FORWARD, microbatch=microbatch, boundary=e.name) for e in edges]
