"""What ranks run on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite


@dataclass(frozen=True)
class Machine:
    """What one rank and its links achieve; not what their data sheets promise.

    Args:
        flops_per_s: of forwards and backwards.
        link_bytes_per_s: between two ranks of different nodes, in each direction.
        latency_s: of a transfer, and of a collective.
        memory_bytes_per_s: of the rank's own memory.
        node_bytes_per_s: between two ranks of one node, in each direction. Where it is infinite,
            nothing is known of nodes: every link is one between nodes, and of layers the products
            of matrices are counted alone; ``flops_per_s`` then stands for all that they do.
        ranks_per_node: that share a node.
        memory_bytes: of the rank's own memory.
        launch_s: of a layer's pass, however small.
    """

    flops_per_s: float = 200e12
    link_bytes_per_s: float = 25e9
    latency_s: float = 20e-6
    memory_bytes_per_s: float = 2e12
    node_bytes_per_s: float = inf
    ranks_per_node: int = 8
    memory_bytes: float = inf
    launch_s: float = 0.0

    def __str__(self) -> str:
        said = (
            f"{self.flops_per_s / 1e12:g} TFLOP/s achieved per rank, "
            f"{self.link_bytes_per_s / 1e9:g} GB/s and {self.latency_s * 1e6:g} us per transfer"
        )
        if not self.knows_nodes:
            return said
        return (
            f"{said}, {self.node_bytes_per_s / 1e9:g} GB/s in nodes of {self.ranks_per_node}, "
            f"{self.memory_bytes_per_s / 1e12:g} TB/s of memory"
        )

    @property
    def knows_nodes(self) -> bool:
        """Whether links in nodes, and what layers do beside products of matrices, are counted."""
        return isfinite(self.node_bytes_per_s)

    def is_in_node(self, num_ranks: int) -> bool:
        """Whether so many neighbours share a node."""
        return self.knows_nodes and num_ranks <= self.ranks_per_node

    def hop_bytes_per_s(self, stride: int, size: int) -> float:
        """Return what a rank sends to another one of its process group, at the slowest place.

        Args:
            stride: between the group's neighbours.
            size: of the group.
        """
        inside = self.is_in_node(stride * size)
        return self.node_bytes_per_s if inside else self.link_bytes_per_s

    def ring_bytes_per_s(self, stride: int, size: int) -> float:
        """Return what a rank sends in a sum over its process group.

        Every rank has a link out of its node, and a sum cuts its rows over all that the group has
        in a node: NCCL runs a ring over each.

        Args:
            stride: between the group's neighbours.
            size: of the group.
        """
        if not self.knows_nodes or self.is_in_node(stride * size):
            return self.hop_bytes_per_s(stride, size)
        links = max(1, self.ranks_per_node // stride)
        return min(self.node_bytes_per_s, links * self.link_bytes_per_s)


@dataclass(frozen=True)
class Hardware:
    """What the groups of a job run on.

    Args:
        default: of groups that are not named.
        of_group: by name.
    """

    default: Machine
    of_group: Mapping[str, Machine] = field(default_factory=dict)

    def __str__(self) -> str:
        groups = (f"{group}: {machine}" for group, machine in self.of_group.items())
        return "; ".join([str(self.default), *groups])

    @classmethod
    def on(cls, machine: "Hardware | Machine") -> "Hardware":
        """Return the hardware of groups that may all run on one kind of machine."""
        return machine if isinstance(machine, Hardware) else cls(machine)

    def of(self, group: str) -> Machine:
        """Return what a group's ranks run on."""
        return self.of_group.get(group, self.default)
