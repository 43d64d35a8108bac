"""From passes to ops: builders order forwards and backwards, transfers follow from the graph.

A forward first receives its rows and then sends its own, a backward does the same with
gradients. Where a boundary lets the LLM put samples off, gradients of one encoder microbatch
come with several LLM microbatches; builders then say themselves when they are received.
"""

from collections.abc import Callable, Collection, Iterable, Sequence

from disagg_train.schedule.graph import Edge, StageGraph, StageNode
from disagg_train.schedule.ops import Op, OpKind

Passes = list[Op]
"""Forwards and backwards in the order in which a rank runs them."""


def forward(stage: str, microbatch: int) -> Op:
    """Return a stage's forward."""
    return Op(OpKind.FORWARD, stage, microbatch)


def backward(stage: str, microbatch: int) -> Op:
    """Return a stage's backward."""
    return Op(OpKind.BACKWARD, stage, microbatch)


def with_transfers(
    graph: StageGraph, passes: Iterable[Op], apart: Collection[Edge] = ()
) -> list[Op]:
    """Return passes with what each of them receives and sends.

    Backwards that the graph does not ask for are left out; a frozen stage's become
    ``backward_input``.

    Args:
        graph: the stage graph.
        passes: what the rank computes, in order.
        apart: edges whose transfers on the side of the LLM are no part of this.
    """
    ops: list[Op] = []
    for op in passes:
        into = [edge for edge in graph.into(op.module) if edge not in apart]
        out = graph.out_of(op.module)
        if op.kind is OpKind.FORWARD:
            ops += transfers(OpKind.RECV_FORWARD, into, op.microbatch)
            ops.append(op)
            ops += transfers(OpKind.SEND_FORWARD, out, op.microbatch)
        elif graph.runs_backward(op.module):
            ops += _backward(graph, op, into, out)
    return ops


def _backward(graph: StageGraph, op: Op, into: Iterable[Edge], out: Iterable[Edge]) -> list[Op]:
    if not graph.nodes[op.module].trainable:
        if op.kind is OpKind.BACKWARD_WEIGHT:
            return []
        op = Op(OpKind.BACKWARD_INPUT, op.module, op.microbatch)
    if not op.kind.gives_input_gradient:
        return [op]
    at_once = [edge for edge in out if not edge.reach.span]
    receives = transfers(OpKind.RECV_BACKWARD, at_once, op.microbatch)
    return [*receives, op, *transfers(OpKind.SEND_BACKWARD, trained(graph, into), op.microbatch)]


def backwards_due(
    graph: StageGraph, stage: str, microbatch: int, num_microbatches: int
) -> list[Op]:
    """Return what a stage of an encoder does once the LLM's backward of a microbatch is done.

    It receives those gradients, and runs the backwards that then have all of theirs.

    Args:
        graph: the stage graph.
        stage: the stage.
        microbatch: of the LLM.
        num_microbatches: of the step; no sample is put off beyond the last.
    """
    if not graph.runs_backward(stage):
        return []
    last = num_microbatches - 1
    due = [
        number
        for number in range(max(microbatch - graph.span_after(stage), 0), microbatch + 1)
        if min(graph.last_consumer(stage, number), last) == microbatch
    ]
    put_off = [edge for edge in graph.out_of(stage) if edge.reach.span]
    receives = transfers(OpKind.RECV_BACKWARD, put_off, microbatch)
    return receives + with_transfers(graph, [backward(stage, number) for number in due])


def trained(graph: StageGraph, edges: Iterable[Edge]) -> list[Edge]:
    """Return the edges that carry gradients."""
    return [edge for edge in edges if graph.runs_backward(edge.source)]


def transfers(kind: OpKind, edges: Iterable[Edge], microbatch: int) -> list[Op]:
    """Return one microbatch's sends or receives of some edges."""
    return [Op(kind, microbatch=microbatch, boundary=edge.name) for edge in edges]


def alternate(forwards: Sequence[Op], backwards: Sequence[Op], warmup: int) -> Passes:
    """Return ``warmup`` forwards, then one forward and one backward in turn, then the rest.

    Args:
        forwards: in order.
        backwards: in order, as many.
        warmup: forwards before the first backward.
    """
    warmup = min(warmup, len(forwards))
    passes = list(forwards[:warmup])
    for ahead, behind in zip(forwards[warmup:], backwards, strict=False):
        passes += [ahead, behind]
    return passes + list(backwards[len(forwards) - warmup :])


def per_rank(
    graph: StageGraph, ops_of: Callable[[tuple[StageNode, ...]], list[Op]]
) -> tuple[tuple[Op, ...], ...]:
    """Return every rank's ops; ranks that host the same stages share one list."""
    hosted = [graph.stages_of(place) for place in range(graph.num_ranks)]
    built: dict[tuple[StageNode, ...], tuple[Op, ...]] = {}
    for stages in hosted:
        if stages not in built:
            built[stages] = tuple(ops_of(stages))
    return tuple(built[stages] for stages in hosted)
