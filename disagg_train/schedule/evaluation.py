"""An evaluation's op lists: forwards alone, and decoding."""

from disagg_train.schedule.graph import Edge, StageGraph, StageNode
from disagg_train.schedule.ops import Op, OpKind, Schedule
from disagg_train.schedule.passes import forward, per_rank, transfers, with_transfers


def evaluation_schedule(graph: StageGraph, num_microbatches: int) -> Schedule:
    """Return a pass without gradients: encoders forward, then the LLM scores and decodes.

    Decoding goes round and round the LLM's stages, so a rank runs all of its own as one op,
    named by the first.
    """

    def ops_of(stages: tuple[StageNode, ...]) -> list[Op]:
        encoders = [stage.name for stage in stages if stage not in graph.language]
        language = [stage.name for stage in stages if stage in graph.language]
        ops = []
        for microbatch in range(num_microbatches):
            ops += with_transfers(graph, [forward(stage, microbatch) for stage in encoders])
            if language:
                outer = [e for e in graph.into(language[0]) if _is_outer(graph, e)]
                ops += transfers(OpKind.RECV_FORWARD, outer, microbatch)
                ops.append(Op(OpKind.EVALUATE, language[0], microbatch))
        return ops

    in_flight = dict.fromkeys(graph.nodes, num_microbatches)
    return Schedule("evaluation", per_rank(graph, ops_of), num_microbatches, in_flight)


def _is_outer(graph: StageGraph, edge: Edge) -> bool:
    """Whether an edge comes from outside the LLM."""
    return graph.nodes[edge.source] not in graph.language
