"""Module graphs for the schedule tests: fixed ones by name, and random ones."""

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

from disagg_train.schedule.build import training_schedule
from disagg_train.schedule.graph import Edge, Reach, StageGraph, StageNode, stage_name
from disagg_train.schedule.language import Pipeline
from disagg_train.schedule.ops import Schedule

LANGUAGE = "language"
ENCODERS = ("vision", "audio", "depth")


@dataclass(frozen=True)
class TrainingCase:
    """What a training schedule is built from."""

    graph: StageGraph
    num_microbatches: int
    window: int
    pipeline: Pipeline = "1f1b"

    @property
    def schedule(self) -> Schedule:
        """The schedule under test."""
        return training_schedule(self.graph, self.num_microbatches, self.window, self.pipeline)


def node(
    name: str, group: str, places: range, lane_size: int = 1, trainable: bool = True
) -> StageNode:
    """Return a module whose lanes are runs of ``lane_size`` of its places."""
    lanes = tuple(
        tuple(places[first : first + lane_size]) for first in range(0, len(places), lane_size)
    )
    return StageNode(name, group, lanes, trainable)


def graph_of(*nodes: StageNode) -> StageGraph:
    """Return the graph in which every node but the LLM feeds the LLM."""
    edges = tuple(Edge(n.name, LANGUAGE) for n in nodes if n.name != LANGUAGE)
    return StageGraph({n.name: n for n in nodes}, edges)


def disjoint_graph(trainable: bool = True) -> StageGraph:
    """Return one encoder on ranks 0 and 1 (dp 2) and an LLM on ranks 2 and 3 (tp 2)."""
    vision = node("vision", "encoders", range(2), trainable=trainable)
    return graph_of(vision, node(LANGUAGE, LANGUAGE, range(2, 4), lane_size=2))


def colocated_graph() -> StageGraph:
    """Return an encoder (dp 2) and an LLM (tp 2) on the same two ranks."""
    vision = node("vision", LANGUAGE, range(2))
    return graph_of(vision, node(LANGUAGE, LANGUAGE, range(2), lane_size=2))


def mixed_graph() -> StageGraph:
    """Return vision on the LLM's rank 1, and a frozen audio encoder on rank 0."""
    audio = node("audio", "encoders", range(1), trainable=False)
    return graph_of(
        audio, node("vision", LANGUAGE, range(1, 2)), node(LANGUAGE, LANGUAGE, range(1, 2))
    )


def pipelined(
    name: str,
    group: str,
    places: range,
    pp: int,
    lane_size: int,
    trainable: bool = True,
    vpp: int = 1,
) -> list[StageNode]:
    """Return the stages of a module: its places are cut evenly, each cut hosts every pp-th."""
    per_stage = len(places) // pp
    return [
        node(
            stage_name(name, stage, pp * vpp),
            group,
            places[stage % pp * per_stage : (stage % pp + 1) * per_stage],
            min(lane_size, per_stage),
            trainable,
        )
        for stage in range(pp * vpp)
    ]


def graph_of_modules(
    *modules: list[StageNode], span: int = 0, window: int | None = None
) -> StageGraph:
    """Return the graph in which each module's stages follow each other and feed the LLM.

    The LLM may put samples off by ``span`` microbatches, those of encoders in its own group not
    beyond a ``window``.
    """
    first_of_language, home = next(
        (m[0].name, m[0].group) for m in modules if m[0].module == LANGUAGE
    )
    edges = []
    for stages in modules:
        edges += [Edge(a.name, b.name) for a, b in pairwise(stages)]
        if stages[0].module != LANGUAGE:
            label = f"{stages[0].module}->{LANGUAGE}"
            reach = Reach(span, window if stages[0].group == home else None)
            edges.append(Edge(stages[-1].name, first_of_language, label, reach))
    return StageGraph({stage.name: stage for stages in modules for stage in stages}, tuple(edges))


def pipelined_graph(span: int = 0) -> StageGraph:
    """Return an encoder of two stages feeding an LLM of two stages, a rank each."""
    return graph_of_modules(
        pipelined("vision", "encoders", range(2), 2, 1),
        pipelined(LANGUAGE, LANGUAGE, range(2, 4), 2, 1),
        span=span,
    )


def interleaved_graph() -> StageGraph:
    """Return an encoder feeding an LLM whose two ranks host two stages each."""
    return graph_of_modules(
        pipelined("vision", "encoders", range(1), 1, 1),
        pipelined(LANGUAGE, LANGUAGE, range(1, 3), 2, 1, vpp=2),
    )


@st.composite
def graphs(draw: st.DrawFn) -> StageGraph:
    """Draw one to three encoders, each on the LLM's group, its own or a shared one.

    Every module has one, two or four pipeline stages, as its ranks allow; the LLM's pipelines
    are interleaved now and then, and the LLM may put samples off.
    """
    span = draw(st.sampled_from([0, 0, 1, 2]))
    return graph_of_modules(*draw(_modules()), span=span)


@st.composite
def _modules(draw: st.DrawFn) -> list[list[StageNode]]:
    names = ENCODERS[: draw(st.integers(1, 3), label="encoders")]
    group_of = {name: draw(st.sampled_from([LANGUAGE, "shared", name])) for name in names}
    group_of[LANGUAGE] = LANGUAGE
    places_of, first = {}, 0
    for group in draw(st.permutations(sorted(set(group_of.values())))):
        count = draw(st.sampled_from([1, 2, 4]), label=f"ranks of {group}")
        places_of[group] = range(first, first + count)
        first += count
    modules = []
    for name in draw(st.permutations([*names, LANGUAGE])):
        places = places_of[group_of[name]]
        degrees = [n for n in (1, 2, 4) if n <= len(places)]
        pp, lane_size = draw(st.sampled_from(degrees)), draw(st.sampled_from(degrees))
        trainable = draw(st.booleans())
        vpp = draw(st.sampled_from([1, 2, 3])) if name == LANGUAGE and pp > 1 else 1
        modules.append(pipelined(name, group_of[name], places, pp, lane_size, trainable, vpp))
    return modules


@st.composite
def training_cases(draw: st.DrawFn) -> TrainingCase:
    """Draw a graph, 1 to 6 microbatches, a window that may exceed them, and a pipeline.

    Interleaved pipelines take microbatches by the group, as many as pipeline ranks.
    """
    modules, span = draw(_modules()), draw(st.sampled_from([0, 0, 1, 2]))
    graph = graph_of_modules(*modules)
    hosted = len(graph.stages_of_language(graph.language[0]))
    group = len(graph.language) // hosted if hosted > 1 else 1
    pipelines: list[Pipeline] = ["1f1b"] if hosted > 1 else ["1f1b", "zero_bubble", "gpipe"]
    count = group * draw(st.integers(1, 6 if group == 1 else 3))
    window = group * draw(st.integers(1, 7 if group == 1 else 3))
    graph = graph_of_modules(*modules, span=span, window=window)
    return TrainingCase(graph, count, window, draw(st.sampled_from(pipelines)))
