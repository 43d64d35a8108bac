"""Put the builders together: the op list of every rank of a job."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from disagg_train.schedule.colocated import colocated
from disagg_train.schedule.expected import change_in_flight
from disagg_train.schedule.graph import Edge, StageGraph, StageNode
from disagg_train.schedule.interleaved import interleaved
from disagg_train.schedule.one_f_one_b import gpipe, one_f_one_b
from disagg_train.schedule.ops import Op, OpKind, Schedule, update_ops
from disagg_train.schedule.passes import Passes, forward, transfers, with_transfers
from disagg_train.schedule.upstream import run_ahead, upstream
from disagg_train.schedule.zero_bubble import zero_bubble

Pipeline = Literal["1f1b", "zero_bubble", "gpipe"]
"""How the LLM's stages order their passes; 1f1b is interleaved where ranks host several."""

PIPELINES: dict[str, Pipeline] = {name: name for name in get_args(Pipeline)}


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
    windows = any(node.group == graph.last.group for node in _encoders(graph))
    window = min(window, num_microbatches) if windows else num_microbatches
    clock = _language_ops(graph, [], (graph.language[0],), num_microbatches, window, pipeline)

    def ops_of(stages: tuple[StageNode, ...]) -> list[Op]:
        language = tuple(stage for stage in stages if stage in graph.language)
        encoders = [stage.name for stage in stages if stage not in graph.language]
        if language:
            ops = _language_ops(graph, encoders, language, num_microbatches, window, pipeline)
        else:
            ops = upstream(graph, encoders, clock)
        trained = [stage.name for stage in stages if stage.trainable]
        ahead = run_ahead(graph, encoders, num_microbatches)
        return [*_with_sync(ops, trained), *ahead, *update_ops(trained)]

    ops = _per_rank(graph, ops_of)
    name = _name(graph, pipeline) + (f", windows of {window}" if windows else "")
    return Schedule(name, ops, num_microbatches, _most_in_flight(graph, ops))


def _name(graph: StageGraph, pipeline: Pipeline) -> str:
    shared = len(graph.stages_of_language(graph.language[0])) > 1
    return "interleaved 1f1b" if shared and pipeline == "1f1b" else pipeline


def _language_ops(
    graph: StageGraph,
    encoders: Sequence[str],
    language: Sequence[StageNode],
    num_microbatches: int,
    window: int,
    pipeline: Pipeline,
) -> list[Op]:
    """Return the passes, with transfers, of a rank of the LLM's group."""
    hosted = graph.stages_of_language(language[0])

    def passes(microbatches: Sequence[int]) -> Passes:
        return _language_passes(graph, hosted, microbatches, pipeline)

    return colocated(graph, encoders, hosted, passes, num_microbatches, window)


def _language_passes(
    graph: StageGraph, stages: Sequence[str], microbatches: Sequence[int], pipeline: Pipeline
) -> Passes:
    """Return the passes of a rank that hosts some stages of the LLM."""
    stage = stages[0]
    before = [node.name for node in graph.language].index(stage)
    if len(stages) > 1:
        pp = len(graph.language) // len(stages)
        return interleaved(stages, microbatches, before, pp)
    if pipeline == "zero_bubble":
        return zero_bubble(stage, microbatches, before, graph.stages_after(stage))
    if pipeline == "gpipe":
        return gpipe(stage, microbatches)
    return one_f_one_b(stage, microbatches, graph.stages_after(stage))


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
    return Schedule("evaluation", _per_rank(graph, ops_of), num_microbatches, in_flight)


def _encoders(graph: StageGraph) -> list[StageNode]:
    return [node for node in graph.nodes.values() if node not in graph.language]


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
