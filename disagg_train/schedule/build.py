"""Put the builders together: the op list of every rank of a job."""

from disagg_train.schedule.colocated import language_ops, receives
from disagg_train.schedule.graph import ModuleGraph
from disagg_train.schedule.one_f_one_b import encoder_ops, forwards
from disagg_train.schedule.ops import Op, OpKind, Schedule, update_ops


def training_schedule(graph: ModuleGraph, num_microbatches: int, window: int) -> Schedule:
    """Return one training step of every rank.

    Args:
        graph: the module graph.
        num_microbatches: of the step.
        window: microbatches per window of the encoders colocated with the LLM.
    """
    home = graph.language.group
    window = min(window, num_microbatches)
    by_group = {home: language_ops(graph, num_microbatches, window)}
    in_flight = {graph.language.name: 1}
    for edge in graph.edges:
        group = graph.nodes[edge.source].group
        in_flight[edge.source] = window if group == home else min(2, num_microbatches)
        if group not in by_group:
            by_group[group] = encoder_ops(graph, graph.encoders(group), num_microbatches)
    for group in by_group:
        members = [node for node in graph.nodes.values() if node.group == group]
        by_group[group] += update_ops([node.name for node in members if node.trainable])
    name = "1f1b" if graph.encoders(home) == () else f"colocated, windows of {window}"
    return Schedule(name, _per_rank(graph, by_group), num_microbatches, in_flight)


def evaluation_schedule(graph: ModuleGraph, num_microbatches: int) -> Schedule:
    """Return a pass without gradients: encoders forward, the LLM scores and decodes."""
    language = graph.language
    by_group: dict[str, list[Op]] = {node.group: [] for node in graph.nodes.values()}
    for microbatch in range(num_microbatches):
        for group in by_group:
            by_group[group] += forwards(graph.encoders(group), microbatch)
        by_group[language.group] += receives(graph.edges, microbatch)
        by_group[language.group].append(Op(OpKind.EVALUATE, language.name, microbatch))
    in_flight = dict.fromkeys(graph.nodes, num_microbatches)
    return Schedule("evaluation", _per_rank(graph, by_group), num_microbatches, in_flight)


def _per_rank(graph: ModuleGraph, by_group: dict[str, list[Op]]) -> tuple[tuple[Op, ...], ...]:
    frozen = {group: tuple(ops) for group, ops in by_group.items()}
    group_of = {place: node.group for node in graph.nodes.values() for place in node.places}
    return tuple(frozen[group_of[place]] for place in range(graph.num_ranks))
