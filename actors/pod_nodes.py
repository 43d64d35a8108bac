"""Groups on pods that were made for them: the labels of Ray's nodes say for which. Knows no Ray.

Without that, a group of two ranks might take GPUs of a pod with four that another group fills.
"""

from collections.abc import Mapping, Sequence
from math import floor
from typing import Any

from disagg_train.kube.pods import GROUP_LABEL, pod_name

_ROUNDING = 1e-6


def selector(
    group: str, ranks: int, bundle: Mapping[str, float], nodes: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the label of the nodes that a group is to be placed on.

    Args:
        group: name of the actor group.
        ranks: how many it has.
        bundle: what a rank takes.
        nodes: as ``ray.nodes()`` lists them.

    Returns:
        Nothing, and so any nodes, where those of the group have no room for all of it: no node
        has the label, or the job runs on fewer pods than it was made for.
    """
    label = {GROUP_LABEL: pod_name(group)}
    room = sum(
        _room(node["Resources"], bundle)
        for node in nodes
        if node["Alive"] and label.items() <= node.get("Labels", {}).items()
    )
    return label if room >= ranks else {}


def _room(resources: Mapping[str, float], bundle: Mapping[str, float]) -> int:
    amounts = bundle.items()
    return min(floor(resources.get(kind, 0.0) / amount + _ROUNDING) for kind, amount in amounts)
