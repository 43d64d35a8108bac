"""A rank of encoders on ranks of their own: it keeps the clock of the LLM's first stage.

    encoder          F0 F1 F2 B0 F3 B1 B2 B3
    LLM, stage 0        F0 F1 B0 F2 B1 F3 B2 B3
    LLM, stage 1           F0 B0 F1 B1 F2 B2 F3 B3

A stage that is d stages away from the LLM keeps the order of the LLM's first stage, with
every forward d microbatches early; behind plain 1F1B that is 1F1B. Stages that share a rank
take turns by that clock; so all ranks keep one order, whatever their stages, and none waits
for ever. Where the LLM may put samples off by D microbatches, a backward follows the LLM's
backward D microbatches later, its last consumer, and so the warm-up is D forwards longer.

Encoders that are frozen, with everything before them, run ahead into the next step: while
the LLM still works on this one, they have nothing to wait for.
"""

from collections.abc import Iterable, Sequence

from disagg_train.schedule.graph import StageGraph
from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.passes import backwards_due, forward, with_transfers


def upstream(graph: StageGraph, stages: Iterable[str], language: Sequence[Op]) -> list[Op]:
    """Return the forwards and backwards of a rank of encoders, disjoint from the LLM.

    Args:
        graph: the stage graph.
        stages: the rank's stages, in the order of the job file.
        language: ops of a rank of the LLM's first stage.
    """
    first = graph.language[0].name
    forwards = _clock(language, first, OpKind.FORWARD)
    backwards = _clock(language, first, OpKind.BACKWARD)
    backwards |= _clock(language, first, OpKind.BACKWARD_INPUT)
    turns: list[tuple[int, list[Op]]] = []
    for stage in stages:
        early = graph.stages_after(stage) - graph.stages_after(first)
        for k in sorted(forwards):
            begin = forwards[k - early] if k >= early else k - early
            turns.append((begin, with_transfers(graph, [forward(stage, k)])))
            turns.append((backwards.get(k, 0), backwards_due(graph, stage, k, len(forwards))))
    return [op for _, ops in sorted(turns, key=lambda turn: turn[0]) for op in ops]


def _clock(ops: Sequence[Op], stage: str, kind: OpKind) -> dict[int, int]:
    """Return when each microbatch has its turn, counted in ops."""
    return {op.microbatch: at for at, op in enumerate(ops) if (op.kind, op.module) == (kind, stage)}


def run_ahead(graph: StageGraph, stages: Iterable[str], num_microbatches: int) -> list[Op]:
    """Return the next step's forwards that a rank runs before this step's end.

    As many as fill the stages that follow, so that none of these waits when a step begins;
    no more, since their rows are kept meanwhile.

    Args:
        graph: the stage graph.
        stages: the rank's stages of encoders.
        num_microbatches: of a step.
    """
    return [
        Op(OpKind.RUN_AHEAD, stage, microbatch)
        for stage in stages
        if may_run_ahead(graph, stage)
        for microbatch in range(min(graph.stages_after(stage), num_microbatches))
    ]


def may_run_ahead(graph: StageGraph, stage: str) -> bool:
    """Whether a stage's rows depend on no weight that changes, nor on another rank's rows."""
    apart = graph.nodes[stage].group != graph.last.group
    return apart and not graph.runs_backward(stage) and not graph.into(stage)
