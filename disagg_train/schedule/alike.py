"""Ranks that do the same at the same times. A job of 1,024 ranks has a handful of kinds."""

from collections.abc import Hashable, Iterable
from dataclasses import replace

from disagg_train.schedule.graph import StageGraph, StageNode
from disagg_train.schedule.ops import Op, Schedule


def alike_ranks(schedule: Schedule, graph: StageGraph) -> tuple[int, ...]:
    """Return for every rank the first rank that is like it.

    Two ranks are alike if they host the same stages, run the same ops, and share their lanes
    with ranks that are alike.
    """
    hosted: list[list[str]] = [[] for _ in schedule.ops]
    for node in graph.nodes.values():
        for place in node.places:
            hosted[place].append(node.name)
    lists = _numbers_of_lists(schedule)
    kinds: tuple[int, ...] = ()
    finer = _first_like_it(zip(map(tuple, hosted), lists, strict=True))
    while finer != kinds:
        kinds = finer
        finer = _first_like_it(zip(kinds, _company(kinds, graph), strict=True))
    return kinds


def _numbers_of_lists(schedule: Schedule) -> list[int]:
    """Return a number per rank, equal where op lists are; most are the same object."""
    by_id: dict[int, int] = {}
    by_value: dict[tuple[Op, ...], int] = {}
    for ops in schedule.ops:
        if id(ops) not in by_id:
            by_id[id(ops)] = by_value.setdefault(ops, len(by_value))
    return [by_id[id(ops)] for ops in schedule.ops]


def _first_like_it(traits: Iterable[Hashable]) -> tuple[int, ...]:
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(trait, rank) for rank, trait in enumerate(traits))


def _company(kinds: tuple[int, ...], graph: StageGraph) -> list[tuple[frozenset[int], ...]]:
    """Return per rank the kinds that share its lanes, lane by lane."""
    found: list[list[frozenset[int]]] = [[] for _ in kinds]
    for node in graph.nodes.values():
        for lane in node.lanes:
            together = frozenset(kinds[place] for place in lane)
            for place in lane:
                found[place].append(together)
    return [tuple(each) for each in found]


def one_of_each(schedule: Schedule, graph: StageGraph) -> tuple[Schedule, StageGraph]:
    """Return a schedule and a graph of one rank per kind, which are simulated in the same time.

    For those who simulate one schedule with many costs: looking for ranks that are alike takes
    longer than simulating a few of them.

    Args:
        schedule: op lists of all ranks.
        graph: the stage graph that they were built for.
    """
    alike = alike_ranks(schedule, graph)
    number = {rank: index for index, rank in enumerate(sorted(set(alike)))}

    def fewer(node: StageNode) -> StageNode:
        lanes = {tuple(sorted({number[alike[place]] for place in lane})) for lane in node.lanes}
        return replace(node, lanes=tuple(sorted(lanes)))

    ops = tuple(schedule.ops[rank] for rank in number)
    nodes = {name: fewer(node) for name, node in graph.nodes.items()}
    return replace(schedule, ops=ops), replace(graph, nodes=nodes)
