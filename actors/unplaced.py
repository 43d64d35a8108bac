"""Why a group was not placed, for people: what it asked for, and what the cluster has."""

from collections.abc import Iterable, Mapping, Sequence

from actors.bundles import Bundles
from actors.nodes import Node
from actors.resources import is_counted
from disagg_train.kube.pods import OF_RAY

_MOST_NODES = 16


def unplaced(bundles: Bundles, nodes: Sequence[Node], waited_s: float) -> str:
    """Return which bundle of a group has no room, what it asks for, and what there is.

    Args:
        bundles: of the group.
        nodes: that live, with what is free of them now.
        waited_s: how long room was waited for.
    """
    lines = [
        f"group {bundles.group!r} was not placed in {waited_s:g} s: {_reason(bundles, nodes)}",
        "The cluster has",
        *(f"  {_node(node, bundles.labels)}" for node in nodes[:_MOST_NODES]),
    ]
    if more := len(nodes) - _MOST_NODES:
        lines += [f"  and {more} more nodes"] * (more > 0)
    return "\n".join([*lines, f"{_way_out(bundles)}."])


def _reason(bundles: Bundles, nodes: Sequence[Node]) -> str:
    wanted = f"{_amounts(bundles.resources)} for {_ranks(bundles)}"
    if bundles.labels and not any(node.has(bundles.labels) for node in nodes):
        return (
            f"no node has the labels {_labels(bundles.labels)} of groups.{bundles.group}.labels; "
            f"each of its bundles needs {wanted} on such a node."
        )
    number = min(bundles.num_on(nodes) + 1, bundles.count)
    with_labels = f" with the labels {_labels(bundles.labels)}" if bundles.labels else ""
    return (
        f"no node{with_labels} has room for its bundle {number} of {bundles.count}, which needs "
        f"{wanted}."
    )


def _ranks(bundles: Bundles) -> str:
    size = bundles.ranks_per_bundle
    if size == 1:
        return "one rank"
    return f"the {size} ranks of a tp group" if size == bundles.tp_ranks else f"{size} ranks"


def _node(node: Node, wanted: Mapping[str, str]) -> str:
    kinds = sorted(filter(is_counted, node.total), key=lambda kind: (":" in kind, kind))
    free = ", ".join(
        f"{node.free.get(kind, 0.0):g} of {node.total[kind]:g} {kind}" for kind in kinds
    )
    own = {k: v for k, v in node.labels.items() if not k.startswith(OF_RAY) or k in wanted}
    return f"{node.address}: {free or 'nothing for ranks'} free; " + (
        f"labels {_labels(own)}" if own else "no labels"
    )


def _way_out(bundles: Bundles) -> str:
    about = f"groups.{bundles.group}"
    fields = [f"{about}.ranks", *([f"{about}.labels"] if bundles.labels else [])]
    return f"Start nodes, change {' or '.join(fields)}, or raise deadlines.placement_s"


def _amounts(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in _known_first(resources.items()))


def _known_first(amounts: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(amounts, key=lambda each: (":" in each[0], each[0]))


def _labels(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))
