"""The module graph as schedules see it: who computes together, what feeds what."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ModuleNode:
    """One module.

    Args:
        name: of the module.
        group: actor group that hosts it; modules of one group share their ranks.
        lanes: global ranks that run each forward and backward together (tp x cp), lane
            by lane; together they are the module's ranks.
        trainable: whether any of its weights is trained.
    """

    name: str
    group: str
    lanes: tuple[tuple[int, ...], ...]
    trainable: bool = True

    @cached_property
    def places(self) -> frozenset[int]:
        """Global ranks of the module."""
        return frozenset(place for lane in self.lanes for place in lane)


@dataclass(frozen=True)
class Edge:
    """A boundary: ``source`` feeds ``destination``."""

    source: str
    destination: str

    @property
    def name(self) -> str:
        """The boundary's name in ops, logs and errors."""
        return f"{self.source}->{self.destination}"


@dataclass(frozen=True)
class ModuleGraph:
    """Modules by name, and the boundaries between them.

    The one module without an outgoing edge is the LLM.
    """

    nodes: Mapping[str, ModuleNode]
    edges: tuple[Edge, ...] = ()

    @cached_property
    def language(self) -> ModuleNode:
        """The module at the end of every path."""
        sources = {edge.source for edge in self.edges}
        return next(node for name, node in self.nodes.items() if name not in sources)

    @cached_property
    def num_ranks(self) -> int:
        """Number of global ranks."""
        return 1 + max(place for node in self.nodes.values() for place in node.places)

    def edge(self, name: str) -> Edge:
        """Return the boundary called ``name``."""
        return next(edge for edge in self.edges if edge.name == name)

    def encoders(self, group: str) -> tuple[Edge, ...]:
        """Return the boundaries whose source sits on ``group``."""
        return tuple(edge for edge in self.edges if self.nodes[edge.source].group == group)

    def runs_backward(self, module: str) -> bool:
        """Return whether ``module`` or anything upstream of it is trainable."""
        upstream = (edge.source for edge in self.edges if edge.destination == module)
        return self.nodes[module].trainable or any(self.runs_backward(m) for m in upstream)
