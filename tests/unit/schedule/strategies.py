"""Module graphs for the schedule tests: fixed ones by name, and random ones."""

from dataclasses import dataclass

from hypothesis import strategies as st

from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.graph import Edge, ModuleGraph, ModuleNode
from disagg_train.schedule.ops import Schedule

LANGUAGE = "language"
ENCODERS = ("vision", "audio", "depth")


@dataclass(frozen=True)
class TrainingCase:
    """What a training schedule is built from."""

    graph: ModuleGraph
    num_microbatches: int
    window: int

    @property
    def schedule(self) -> Schedule:
        """The schedule under test."""
        return training_schedule(self.graph, self.num_microbatches, self.window)


def node(
    name: str, group: str, places: range, lane_size: int = 1, trainable: bool = True
) -> ModuleNode:
    """Return a module whose lanes are runs of ``lane_size`` of its places."""
    lanes = tuple(
        tuple(places[first : first + lane_size]) for first in range(0, len(places), lane_size)
    )
    return ModuleNode(name, group, lanes, trainable)


def graph_of(*nodes: ModuleNode) -> ModuleGraph:
    """Return the graph in which every node but the LLM feeds the LLM."""
    edges = tuple(Edge(n.name, LANGUAGE) for n in nodes if n.name != LANGUAGE)
    return ModuleGraph({n.name: n for n in nodes}, edges)


def disjoint_graph(trainable: bool = True) -> ModuleGraph:
    """Return one encoder on ranks 0 and 1 (dp 2) and an LLM on ranks 2 and 3 (tp 2)."""
    vision = node("vision", "encoders", range(2), trainable=trainable)
    return graph_of(vision, node(LANGUAGE, LANGUAGE, range(2, 4), lane_size=2))


def colocated_graph() -> ModuleGraph:
    """Return an encoder (dp 2) and an LLM (tp 2) on the same two ranks."""
    vision = node("vision", LANGUAGE, range(2))
    return graph_of(vision, node(LANGUAGE, LANGUAGE, range(2), lane_size=2))


def mixed_graph() -> ModuleGraph:
    """Return vision on the LLM's rank 1, and a frozen audio encoder on rank 0."""
    audio = node("audio", "encoders", range(1), trainable=False)
    return graph_of(
        audio, node("vision", LANGUAGE, range(1, 2)), node(LANGUAGE, LANGUAGE, range(1, 2))
    )


@st.composite
def graphs(draw: st.DrawFn) -> ModuleGraph:
    """Draw one to three encoders, each on the LLM's group, its own or a shared one."""
    names = ENCODERS[: draw(st.integers(1, 3), label="encoders")]
    group_of = {name: draw(st.sampled_from([LANGUAGE, "shared", name])) for name in names}
    group_of[LANGUAGE] = LANGUAGE
    places_of, first = {}, 0
    for group in draw(st.permutations(sorted(set(group_of.values())))):
        count = draw(st.sampled_from([1, 2, 4]), label=f"ranks of {group}")
        places_of[group] = range(first, first + count)
        first += count
    nodes = []
    for name in draw(st.permutations([*names, LANGUAGE])):
        places = places_of[group_of[name]]
        lane_size = draw(st.sampled_from([n for n in (1, 2, 4) if n <= len(places)]))
        nodes.append(node(name, group_of[name], places, lane_size, draw(st.booleans())))
    return graph_of(*nodes)


@st.composite
def training_cases(draw: st.DrawFn) -> TrainingCase:
    """Draw a graph, 1 to 6 microbatches, and a window that may exceed them."""
    return TrainingCase(draw(graphs()), draw(st.integers(1, 6)), draw(st.integers(1, 7)))
