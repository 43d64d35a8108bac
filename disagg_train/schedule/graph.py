"""The stage graph as schedules see it: who computes together, what feeds what."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


def stage_name(module: str, stage: int, num_stages: int) -> str:
    """Return a pipeline stage's name: the module's own where it has no other stage."""
    return module if num_stages == 1 else f"{module}.{stage}"


@dataclass(frozen=True)
class Reach:
    """How long after the source the destination may take a sample.

    Args:
        span: microbatches by which it may put one off.
        window: microbatches of a window, beyond the end of which none is put off; None for no
            windows.
    """

    span: int = 0
    window: int | None = None

    def drawn_on(self, microbatch: int) -> range:
        """Return the source's microbatches that one of the destination's may draw on."""
        first = microbatch // self.window * self.window if self.window else 0
        return range(max(microbatch - self.span, first), microbatch + 1)

    def consumers(self, microbatch: int) -> range:
        """Return the destination's microbatches that may draw on one of the source's.

        Some may lie beyond the last of the step.
        """
        stop = microbatch + self.span + 1
        if self.window:
            stop = min(stop, (microbatch // self.window + 1) * self.window)
        return range(microbatch, stop)


@dataclass(frozen=True)
class StageNode:
    """One pipeline stage of a module, or a whole module without pipeline parallelism.

    Args:
        name: of the stage (``stage_name``).
        group: actor group that hosts it; modules of one group share their ranks.
        lanes: global ranks that run each forward and backward together (tp x cp, and all dp
            ranks with them where experts span these), lane by lane; together they are the
            stage's ranks.
        trainable: whether any of its weights is trained.
    """

    name: str
    group: str
    lanes: tuple[tuple[int, ...], ...]
    trainable: bool = True

    @cached_property
    def places(self) -> frozenset[int]:
        """Global ranks of the stage."""
        return frozenset(place for lane in self.lanes for place in lane)

    @property
    def module(self) -> str:
        """The module that it is a stage of."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Edge:
    """A boundary or a stage link: ``source`` feeds ``destination``.

    Args:
        source: name of a stage.
        destination: name of a stage.
        label: name in ops, logs and errors, where it is not made of the stages' names.
        reach: how long after the source the destination may take a sample.
    """

    source: str
    destination: str
    label: str = ""
    reach: Reach = Reach()

    @property
    def name(self) -> str:
        """The edge's name in ops, logs and errors."""
        return self.label or f"{self.source}->{self.destination}"


@dataclass(frozen=True)
class StageGraph:
    """Stages by name, and the edges between them.

    The one stage without an outgoing edge is the LLM's last.

    Args:
        nodes: the stages by name.
        edges: between them.
        tied: stages that share a weight, and so settle their gradients together.
    """

    nodes: Mapping[str, StageNode]
    edges: tuple[Edge, ...] = ()
    tied: tuple[str, ...] = ()

    @cached_property
    def last(self) -> StageNode:
        """The stage at the end of every path: the LLM's last."""
        sources = {edge.source for edge in self.edges}
        return next(node for name, node in self.nodes.items() if name not in sources)

    @cached_property
    def language(self) -> tuple[StageNode, ...]:
        """The LLM's stages."""
        return tuple(n for n in self.nodes.values() if n.module == self.last.module)

    def stages_of_language(self, stage: StageNode) -> list[str]:
        """Return the LLM's stages on the ranks of ``stage``: several where it is interleaved."""
        return [node.name for node in self.language if node.places == stage.places]

    @cached_property
    def num_ranks(self) -> int:
        """Number of global ranks."""
        return 1 + max(place for node in self.nodes.values() for place in node.places)

    @cached_property
    def _edges(self) -> dict[str, Edge]:
        return {edge.name: edge for edge in self.edges}

    @cached_property
    def _into(self) -> dict[str, tuple[Edge, ...]]:
        return _grouped((edge.destination, edge) for edge in self.edges)

    @cached_property
    def _out_of(self) -> dict[str, tuple[Edge, ...]]:
        return _grouped((edge.source, edge) for edge in self.edges)

    def edge(self, name: str) -> Edge:
        """Return the edge called ``name``."""
        return self._edges[name]

    def into(self, stage: str) -> tuple[Edge, ...]:
        """Return the edges that feed a stage."""
        return self._into.get(stage, ())

    def out_of(self, stage: str) -> tuple[Edge, ...]:
        """Return the edges that a stage feeds."""
        return self._out_of.get(stage, ())

    def stages_of(self, place: int) -> tuple[StageNode, ...]:
        """Return the stages that a global rank hosts, in the order of the job file."""
        return tuple(node for node in self.nodes.values() if place in node.places)

    def stages_after(self, stage: str) -> int:
        """Return how many stages follow on the longest path to the end."""
        following = (1 + self.stages_after(edge.destination) for edge in self.out_of(stage))
        return max(following, default=0)

    def span_after(self, stage: str) -> int:
        """Return by how many microbatches what follows a stage may put off its samples."""
        following = (
            edge.reach.span + self.span_after(edge.destination) for edge in self.out_of(stage)
        )
        return max(following, default=0)

    def last_consumer(self, stage: str, microbatch: int) -> int:
        """Return the last microbatch of the LLM that may draw on one of a stage's.

        It may lie beyond the last of the step.
        """
        if self.nodes[stage].module == self.last.module:
            return microbatch
        following = (
            self.last_consumer(edge.destination, edge.reach.consumers(microbatch)[-1])
            for edge in self.out_of(stage)
        )
        return max(following)

    def runs_backward(self, stage: str) -> bool:
        """Return whether ``stage`` or anything upstream of it is trainable."""
        upstream = (edge.source for edge in self.into(stage))
        return self.nodes[stage].trainable or any(self.runs_backward(s) for s in upstream)


def _grouped(edges: Iterable[tuple[str, Edge]]) -> dict[str, tuple[Edge, ...]]:
    found: dict[str, tuple[Edge, ...]] = {}
    for stage, edge in edges:
        found[stage] = (*found.get(stage, ()), edge)
    return found
