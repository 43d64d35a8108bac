"""Put the builders together: the op list of every rank of a job."""

from collections.abc import Callable

from disagg_train.schedule.colocated import colocated
from disagg_train.schedule.graph import StageGraph, StageNode
from disagg_train.schedule.one_f_one_b import forwards, one_f_one_b, receives
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
        node.name: window
        if windows and node in _encoders(graph) and node.group == graph.last.group
        else min(warmup(graph, node) + 1, num_microbatches)
        for node in graph.nodes.values()
    }
    name = f"colocated, windows of {window}" if windows else "1f1b"
    return Schedule(name, _per_rank(graph, ops_of), num_microbatches, in_flight)


def warmup(graph: StageGraph, stage: StageNode) -> int:
    """Return how many forwards a stage runs before it alternates.

    One per stage that follows. Modules that share a group without the LLM run in one order on
    all its ranks, since they may compute together there, so they warm up alike.
    """
    here = [node for node in graph.nodes.values() if node.group == stage.group]
    if stage in graph.language or len({node.module for node in here}) == 1:
        return graph.stages_after(stage.name)
    return max(graph.stages_after(node.name) for node in here)


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
                    ops += [
                        op for op in receives(graph, stage.name, microbatch) if _outer(graph, op)
                    ]
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
    return one_f_one_b(graph, encoders, range(num_microbatches), warmup(graph, stages[0]))


def _outer(graph: StageGraph, op: Op) -> bool:
    """Whether an op's edge comes from outside the LLM."""
    return graph.nodes[graph.edge(op.boundary).source] not in graph.language


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
