"""Which actor becomes which rank: by node and GPU, and as before where actors are made anew."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actors.agent import Home


def rank_order(homes: "Sequence[Home]", before: "Sequence[Home]" = ()) -> list[int]:
    """Return the places of actors in a list, in the order of their ranks.

    Neighbours share a node, and on it they go by their GPUs. Nodes go by their addresses; where
    the group was there before, its nodes keep their order, and a new node takes the place of a
    lost one, so that what stays keeps its ranks.

    Args:
        homes: where each actor is.
        before: where the group's ranks were, in their order, when it last ran.
    """
    node_of = {home.node_id: home for home in homes}
    nodes = sorted(node_of, key=lambda node: _address_of(node_of[node].address, node))
    at = {node: place for place, node in enumerate(_as_before(nodes, before))}

    def place_of(i: int) -> tuple[int, list[tuple[int, str]]]:
        return at[homes[i].node_id], [(len(gpu), gpu) for gpu in homes[i].gpus]

    return sorted(range(len(homes)), key=place_of)


def _as_before(nodes: Sequence[str], before: "Sequence[Home]") -> list[str]:
    old = dict.fromkeys(home.node_id for home in before)
    new = iter([node for node in nodes if node not in old])
    kept = (node if node in nodes else next(new, None) for node in old)
    return [node for node in kept if node is not None] + list(new)


def _address_of(address: str, node_id: str) -> tuple[int, str, str]:
    """Return what sorts 10.0.0.9 before 10.0.0.10."""
    try:
        return int(ip_address(address)), "", node_id
    except ValueError:
        return 0, address, node_id
