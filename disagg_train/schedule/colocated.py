"""A rank of the LLM's group, with whatever encoders are colocated there, window by window.

    window of 2    E0 E1 | F0 B0 F1 B1 | e0 e1 | E2 E3 ...   (E encoder forward, e backward)

A window runs the colocated encoders' forwards, then the LLM's 1F1B, then the encoders'
backwards. One window of all microbatches is the three-phase schedule of the paper; smaller
windows hold fewer activations. Encoders run on all ranks of the group, also where the LLM
has several stages.

Rows pass between the colocated modules in the encoders' phases. Were they taken or given
within the LLM's phase, a rank still busy with encoders and one already in the LLM could
wait for each other for ever.
"""

from collections.abc import Callable, Sequence

from disagg_train.schedule.graph import Edge, StageGraph
from disagg_train.schedule.ops import Op, OpKind
from disagg_train.schedule.passes import (
    Passes,
    backwards_due,
    forward,
    trained,
    transfers,
    with_transfers,
)


def colocated(
    graph: StageGraph,
    encoders: Sequence[str],
    language: Sequence[str],
    language_passes: Callable[[Sequence[str], Sequence[int]], Passes],
    num_microbatches: int,
    window: int,
) -> list[Op]:
    """Return the forwards and backwards of one rank, without the update.

    Args:
        graph: the stage graph.
        encoders: the rank's stages of encoders, upstream first.
        language: its stages of the LLM.
        language_passes: of the latter, over a window of microbatches.
        num_microbatches: of the step.
        window: microbatches whose encoder activations are held at once.
    """
    within = _edges_within(graph, language)
    given_back = trained(graph, within)
    ops: list[Op] = []
    for first in range(0, num_microbatches, window):
        microbatches = range(first, min(first + window, num_microbatches))
        for microbatch in microbatches:
            ops += with_transfers(graph, [forward(stage, microbatch) for stage in encoders])
            ops += transfers(OpKind.RECV_FORWARD, within, microbatch)
        ops += with_transfers(graph, language_passes(language, microbatches), apart=within)
        for microbatch in microbatches:
            ops += transfers(OpKind.SEND_BACKWARD, given_back, microbatch)
            for stage in reversed(encoders):
                ops += backwards_due(graph, stage, microbatch, num_microbatches)
    return ops


def _edges_within(graph: StageGraph, language: Sequence[str]) -> list[Edge]:
    """Return the edges into some stages of the LLM from encoders of its own group."""
    group = graph.last.group
    return [
        edge
        for stage in language
        for edge in graph.into(stage)
        if graph.nodes[edge.source].group == group
        and graph.nodes[edge.source] not in graph.language
    ]
