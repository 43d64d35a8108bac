"""1F1B: every stage warms up with one forward per stage that follows it, then alternates.

    encoder          F0 F1 F2 B0 F3 B1 B2 B3
    LLM, stage 0        F0 F1 B0 F2 B1 F3 B2 B3
    LLM, stage 1           F0 B0 F1 B1 F2 B2 F3 B3

A forward first receives its rows and then sends its own, a backward does the same with
gradients.
"""

from collections.abc import Collection, Iterable, Sequence

from disagg_train.schedule.graph import Edge, StageGraph
from disagg_train.schedule.ops import Op, OpKind


def one_f_one_b(
    graph: StageGraph, stage: str, microbatches: Sequence[int], apart: Collection[Edge] = ()
) -> list[Op]:
    """Return the forwards and backwards of a stage.

    Args:
        graph: the stage graph.
        stage: its name.
        microbatches: numbers of the microbatches, ascending.
        apart: edges whose transfers are no part of this.
    """
    warmup = min(graph.stages_after(stage), len(microbatches))
    ops: list[Op] = []
    for index, microbatch in enumerate(microbatches):
        ops += forwards(graph, [stage], microbatch, apart)
        if index >= warmup:
            ops += backwards(graph, [stage], microbatches[index - warmup], apart)
    for microbatch in microbatches[len(microbatches) - warmup :]:
        ops += backwards(graph, [stage], microbatch, apart)
    return ops


def upstream(graph: StageGraph, stages: Iterable[str], language: Sequence[Op]) -> list[Op]:
    """Return the forwards and backwards of a rank of encoders, disjoint from the LLM.

    A stage that is d stages away from the LLM keeps the order of the LLM's first stage, with
    every forward d microbatches early; behind plain 1F1B that is 1F1B. Stages that share a
    rank take turns by the LLM's clock; so all ranks keep one order, whatever their stages, and
    none waits for ever.

    Args:
        graph: the stage graph.
        stages: the rank's stages, in the order of the job file.
        language: ops of a rank of the LLM's first stage.
    """
    first = graph.language[0].name
    clock = [op for op in language if op.module == first and op.kind.is_compute]
    time = {(op.kind, op.microbatch): at for at, op in enumerate(clock)}
    passes: list[tuple[int, list[Op]]] = []
    for stage in stages:
        away = graph.stages_after(stage) - graph.stages_after(first)
        for k in sorted(op.microbatch for op in clock if op.kind is OpKind.FORWARD):
            begin = time[OpKind.FORWARD, k - away] if k >= away else k - away
            passes.append((begin, forwards(graph, [stage], k)))
            if graph.runs_backward(stage):
                passes.append((time[OpKind.BACKWARD, k], backwards(graph, [stage], k)))
    return [op for _, ops in sorted(passes, key=lambda each: each[0]) for op in ops]


def forwards(
    graph: StageGraph, stages: Iterable[str], microbatch: int, apart: Collection[Edge] = ()
) -> list[Op]:
    """Return one microbatch's forward of every stage, with what it receives and sends."""
    ops = []
    for stage in stages:
        into = [edge for edge in graph.into(stage) if edge not in apart]
        ops += transfers(OpKind.RECV_FORWARD, into, microbatch)
        ops.append(Op(OpKind.FORWARD, stage, microbatch))
        ops += transfers(OpKind.SEND_FORWARD, graph.out_of(stage), microbatch)
    return ops


def backwards(
    graph: StageGraph, stages: Sequence[str], microbatch: int, apart: Collection[Edge] = ()
) -> list[Op]:
    """Return one microbatch's backward of every stage that has one, the last stage first."""
    ops = []
    for stage in reversed(stages):
        if not graph.runs_backward(stage):
            continue
        into = [edge for edge in graph.into(stage) if edge not in apart]
        ops += transfers(OpKind.RECV_BACKWARD, graph.out_of(stage), microbatch)
        ops.append(Op(OpKind.BACKWARD, stage, microbatch))
        ops += transfers(OpKind.SEND_BACKWARD, trained(graph, into), microbatch)
    return ops


def trained(graph: StageGraph, edges: Iterable[Edge]) -> list[Edge]:
    """Return the edges that carry gradients."""
    return [edge for edge in edges if graph.runs_backward(edge.source)]


def transfers(kind: OpKind, edges: Iterable[Edge], microbatch: int) -> list[Op]:
    """Return one microbatch's sends or receives of some edges."""
    return [Op(kind, microbatch=microbatch, boundary=edge.name) for edge in edges]
