"""A training step's op lists: the builders put together, and the end of a step."""

from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from disagg_train.schedule.colocated import colocated
from disagg_train.schedule.expected import change_in_flight
from disagg_train.schedule.graph import StageGraph, StageNode
from disagg_train.schedule.language import Pipeline, language_passes, pipeline_name
from disagg_train.schedule.ops import Op, OpKind, Schedule, update_ops
from disagg_train.schedule.passes import per_rank
from disagg_train.schedule.upstream import run_ahead, upstream


def training_schedule(
    graph: StageGraph, num_microbatches: int, window: int, pipeline: Pipeline = "1f1b"
) -> Schedule:
    """Return one training step of every rank.

    Args:
        graph: the stage graph.
        num_microbatches: of the step.
        window: microbatches per window of the encoders colocated with the LLM.
        pipeline: order of the LLM's passes.
    """
    home = graph.last.group
    windows = any(n.group == home and n not in graph.language for n in graph.nodes.values())
    window = min(window, num_microbatches) if windows else num_microbatches
    passes = partial(language_passes, graph, pipeline)
    first = graph.stages_of_language(graph.language[0])
    clock = colocated(graph, [], first, passes, num_microbatches, window)

    def ops_of(stages: tuple[StageNode, ...]) -> list[Op]:
        language = [stage.name for stage in stages if stage in graph.language]
        encoders = [stage.name for stage in stages if stage not in graph.language]
        if language:
            ops = colocated(graph, encoders, language, passes, num_microbatches, window)
        else:
            ops = upstream(graph, encoders, clock)
        trained = [stage.name for stage in stages if stage.trainable]
        ahead = run_ahead(graph, encoders, num_microbatches)
        return [*_with_sync(ops, trained), *ahead, *update_ops(trained)]

    ops = per_rank(graph, ops_of)
    name = pipeline_name(graph, pipeline) + (f", windows of {window}" if windows else "")
    return Schedule(name, ops, num_microbatches, _most_in_flight(graph, ops))


def _with_sync(ops: Sequence[Op], trained: Sequence[str]) -> list[Op]:
    """Start to sum each stage's gradients over dp once its last backward and sends are done."""
    kinds = OpKind.BACKWARD, OpKind.BACKWARD_WEIGHT
    last = {op.module: at for at, op in enumerate(ops) if op.kind in kinds}
    found: list[Op] = []
    whole: list[str] = []
    for at, op in enumerate(ops):
        if not op.kind.is_send:
            found += [Op(OpKind.START_GRAD_SYNC, stage) for stage in whole]
            whole = []
        found.append(op)
        if op.module in trained and last[op.module] == at:
            whole.append(op.module)
    return found + [Op(OpKind.START_GRAD_SYNC, stage) for stage in whole]


def _most_in_flight(graph: StageGraph, ops: Sequence[tuple[Op, ...]]) -> dict[str, int]:
    """Return how many microbatches each stage holds at most between forward and backward."""
    most = dict.fromkeys(graph.nodes, 0)
    for kind in set(ops):
        held: dict[str, int] = defaultdict(int)
        for op in kind:
            if change := change_in_flight(op, graph):
                held[op.module] += change
                most[op.module] = max(most[op.module], held[op.module])
    return most
