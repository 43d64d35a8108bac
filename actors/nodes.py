"""The cluster's nodes, as placing groups sees them. Knows no Ray."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

from disagg_train.kube.pods import GROUP_LABEL, pod_name

ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    """A node that lives.

    Args:
        address: of the node.
        labels: that it was started with, and those that Ray gave it.
        total: all of its resources.
        free: those that nobody has reserved.
    """

    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    total: Mapping[str, float] = field(default_factory=dict)
    free: Mapping[str, float] = field(default_factory=dict)

    def has(self, labels: Mapping[str, str]) -> bool:
        """Whether the node has all of these labels."""
        return labels.items() <= self.labels.items()


def live_nodes(
    listed: Iterable[Mapping[str, Any]], free: Mapping[str, Mapping[str, float]]
) -> list[Node]:
    """Return the nodes that live.

    Args:
        listed: as ``ray.nodes()`` lists them.
        free: what is free, by a node's id.
    """
    return [
        Node(
            str(node.get("NodeManagerAddress", "")),
            node.get("Labels", {}),
            node["Resources"],
            free.get(str(node["NodeID"]), {}),
        )
        for node in listed
        if node["Alive"]
    ]


def num_fitting(resources: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    """Return how many bundles of some resources fit into others."""
    amounts = bundle.items()
    return min(floor(resources.get(kind, 0.0) / amount + ROUNDING) for kind, amount in amounts)


def with_group_label(
    group: str,
    labels: Mapping[str, str],
    num_bundles: int,
    bundle: Mapping[str, float],
    nodes: Sequence[Node],
) -> dict[str, str]:
    """Return the labels of the nodes that a group is to be placed on.

    Kubernetes makes pods for each group; their label says for which. Without it, a group of two
    ranks might take GPUs of a pod with four that another group fills.

    Args:
        group: name of the actor group.
        labels: that the nodes must have in any case.
        num_bundles: that the group is placed in.
        bundle: what each takes.
        nodes: that live.

    Returns:
        Only ``labels`` where nodes of the group's own have no room for all of it: no node has the
        label, or the job runs on fewer pods than it was made for.
    """
    own = {**labels, GROUP_LABEL: pod_name(group)}
    room = sum(num_fitting(node.total, bundle) for node in nodes if node.has(own))
    return own if room >= num_bundles else dict(labels)
