"""Put the builders together: the op list of every rank of a job."""

from collections.abc import Callable

from disagg_train.schedule.colocated import colocated
from disagg_train.schedule.graph import Edge, StageGraph, StageNode
from disagg_train.schedule.one_f_one_b import forwards, transfers, upstream
from disagg_train.schedule.ops import Op, OpKind, Schedule, update_ops


def training_schedule(graph: StageGraph, num_microbatches: int, window: int) -> Schedule:
    """Return one training step of every rank.

    Args:
        graph: the stage graph.
        num_microbatches: of the step.
        window: microbatches per window of the encoders colocated with the LLM.
    """
    windows = any(node.group == graph.last.group for node in _encoders(graph))
    window = min(window, num_microbatches) if windows else num_microbatches

    def ops_of(stages: tuple[StageNode, ...]) -> list[Op]:
        ops = _passes(graph, stages, num_microbatches, window)
        return ops + update_ops([stage.name for stage in stages if stage.trainable])

    in_flight = {
        node.name: min(_most_in_flight(graph, node, window), num_microbatches)
        for node in graph.nodes.values()
    }
    name = f"colocated, windows of {window}" if windows else "1f1b"
    return Schedule(name, _per_rank(graph, ops_of), num_microbatches, in_flight)


def _most_in_flight(graph: StageGraph, stage: StageNode, window: int) -> int:
    """Return how many microbatches a stage holds at most between forward and backward."""
    if stage in graph.language:
        return min(graph.stages_after(stage.name) + 1, window)
    if stage.group == graph.last.group:
        return window
    first = graph.language[0]
    away = graph.stages_after(stage.name) - graph.stages_after(first.name)
    return _most_in_flight(graph, first, window) + away


def evaluation_schedule(graph: StageGraph, num_microbatches: int) -> Schedule:
    """Return a pass without gradients: encoders forward, then the LLM scores and decodes.

    Decoding goes round and round the LLM's stages, so they run it as one op.
    """

    def ops_of(stages: tuple[StageNode, ...]) -> list[Op]:
        encoders = [stage.name for stage in stages if stage not in graph.language]
        ops = []
        for microbatch in range(num_microbatches):
            ops += forwards(graph, encoders, microbatch)
            for stage in stages:
                if stage in graph.language:
                    outer = [e for e in graph.into(stage.name) if _is_outer(graph, e)]
                    ops += transfers(OpKind.RECV_FORWARD, outer, microbatch)
                    ops.append(Op(OpKind.EVALUATE, stage.name, microbatch))
        return ops

    in_flight = dict.fromkeys(graph.nodes, num_microbatches)
    return Schedule("evaluation", _per_rank(graph, ops_of), num_microbatches, in_flight)


def _encoders(graph: StageGraph) -> list[StageNode]:
    return [node for node in graph.nodes.values() if node not in graph.language]


def _passes(
    graph: StageGraph, stages: tuple[StageNode, ...], num_microbatches: int, window: int
) -> list[Op]:
    """Return the forwards and backwards of the rank that hosts ``stages``."""
    language = [stage.name for stage in stages if stage in graph.language]
    encoders = [stage.name for stage in stages if stage not in graph.language]
    if language:
        return colocated(graph, encoders, language[0], num_microbatches, window)
    first = colocated(graph, [], graph.language[0].name, num_microbatches, window)
    return upstream(graph, encoders, first)


def _is_outer(graph: StageGraph, edge: Edge) -> bool:
    """Whether an edge comes from outside the LLM."""
    return graph.nodes[edge.source] not in graph.language


def _per_rank(
    graph: StageGraph, ops_of: Callable[[tuple[StageNode, ...]], list[Op]]
) -> tuple[tuple[Op, ...], ...]:
    """Return every rank's ops; ranks that host the same stages share one list."""
    hosted = [graph.stages_of(place) for place in range(graph.num_ranks)]
    built: dict[tuple[StageNode, ...], tuple[Op, ...]] = {}
    for stages in hosted:
        if stages not in built:
            built[stages] = tuple(ops_of(stages))
    return tuple(built[stages] for stages in hosted)
