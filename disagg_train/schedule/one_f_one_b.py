"""1F1B: every stage warms up with one forward per stage that follows it, then alternates.

    encoder          F0 F1 F2 B0 F3 B1 B2 B3
    LLM, stage 0        F0 F1 B0 F2 B1 F3 B2 B3
    LLM, stage 1           F0 B0 F1 B1 F2 B2 F3 B3

A forward first receives its rows and then sends its own, a backward does the same with
gradients. Several stages of one rank take turns within each microbatch.
"""

from collections.abc import Iterable, Sequence

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind


def one_f_one_b(
    graph: StageGraph, stages: Sequence[str], microbatches: Sequence[int], warmup: int
) -> list[Op]:
    """Return the forwards and backwards of a rank's stages.

    Args:
        graph: the stage graph.
        stages: the rank's stages, upstream first.
        microbatches: numbers of the microbatches, ascending.
        warmup: forwards before the first backward, beyond the one that it follows.
    """
    warmup = min(warmup, len(microbatches))
    ops: list[Op] = []
    for index, microbatch in enumerate(microbatches):
        ops += forwards(graph, stages, microbatch)
        if index >= warmup:
            ops += backwards(graph, stages, microbatches[index - warmup])
    for microbatch in microbatches[len(microbatches) - warmup :]:
        ops += backwards(graph, stages, microbatch)
    return ops


def forwards(graph: StageGraph, stages: Iterable[str], microbatch: int) -> list[Op]:
    """Return one microbatch's forward of every stage, with what it receives and sends."""
    ops = []
    for stage in stages:
        ops += receives(graph, stage, microbatch)
        ops.append(Op(OpKind.FORWARD, stage, microbatch))
        ops += [_transfer(OpKind.SEND_FORWARD, e.name, microbatch) for e in graph.out_of(stage)]
    return ops


def receives(graph: StageGraph, stage: str, microbatch: int) -> list[Op]:
    """Return what a stage's forward of one microbatch receives."""
    return [_transfer(OpKind.RECV_FORWARD, e.name, microbatch) for e in graph.into(stage)]


def backwards(graph: StageGraph, stages: Sequence[str], microbatch: int) -> list[Op]:
    """Return one microbatch's backward of every stage that has one, the last stage first."""
    ops = []
    for stage in reversed(stages):
        if not graph.runs_backward(stage):
            continue
        ops += [_transfer(OpKind.RECV_BACKWARD, e.name, microbatch) for e in graph.out_of(stage)]
        ops.append(Op(OpKind.BACKWARD, stage, microbatch))
        ops += [
            _transfer(OpKind.SEND_BACKWARD, edge.name, microbatch)
            for edge in graph.into(stage)
            if graph.runs_backward(edge.source)
        ]
    return ops


def _transfer(kind: OpKind, edge: str, microbatch: int) -> Op:
    return Op(kind, microbatch=microbatch, boundary=edge)
