"""How a group is cut into bundles, each of which Ray puts on one node. Knows no Ray.

A bundle holds a whole tp group, so that its ranks share a node.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from actors.nodes import Node, num_fitting, with_group_label
from actors.resources import Resources
from disagg_train.config.base import divisors
from disagg_train.config.groups import GroupConfig


@dataclass(frozen=True)
class Bundles:
    """What a group asks of the cluster.

    Args:
        group: its name.
        ranks: that it has.
        ranks_per_bundle: how many of them each bundle holds.
        tp_ranks: how many should share a node.
        resources: what a bundle takes.
        labels: that the job file asks of the nodes.
        selector: labels that Ray is asked for; the same, or with that of the group's own pods.
        strategy: Ray's.
    """

    group: str
    ranks: int
    ranks_per_bundle: int
    tp_ranks: int
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    selector: Mapping[str, str] = field(default_factory=dict)
    strategy: str = "PACK"

    @property
    def count(self) -> int:
        """How many there are."""
        return self.ranks // self.ranks_per_bundle

    def of_actor(self, number: int) -> int:
        """Return the bundle that an actor is put into."""
        return number // self.ranks_per_bundle

    def num_on(self, nodes: Sequence[Node]) -> int:
        """Return how many fit on what is free of the nodes that the job allows."""
        return sum(num_fitting(n.free, self.resources) for n in nodes if n.has(self.labels))

    @property
    def note(self) -> str:
        """What people should know: that a tp group does not share a node."""
        if self.ranks_per_bundle == self.tp_ranks:
            return ""
        return (
            f"no node has room for the {self.tp_ranks} ranks of a tp group of group "
            f"{self.group!r}, so they are on several, {self.ranks_per_bundle} each; tensor "
            f"parallelism between nodes is slow, so use larger nodes or less tp"
        )


def bundles_of(
    group: str,
    about: GroupConfig,
    ranks: int,
    tp: int,
    takes: Resources,
    nodes: Sequence[Node],
) -> Bundles:
    """Return the bundles of a group.

    Args:
        group: its name.
        about: what the job file says of it.
        ranks: how many it is to have, a multiple of ``tp``.
        tp: ranks that must share a node.
        takes: what one rank takes.
        nodes: that live. Where some would do but none is large enough for ``tp`` ranks, bundles
            are smaller.
    """
    able = [node for node in nodes if node.has(about.labels)]
    sizes = [
        size
        for size in divisors(tp)
        if any(num_fitting(node.total, takes.bundle(size)) for node in able)
    ]
    size = max(sizes, default=tp)
    resources = takes.bundle(size)
    selector = with_group_label(group, about.labels, ranks // size, resources, nodes)
    strategy = about.strategy.upper()
    return Bundles(group, ranks, size, tp, resources, about.labels, selector, strategy)
