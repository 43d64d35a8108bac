"""All vaults of a session: where they are, and what they hold together."""

from collections.abc import Iterable, Sequence
from typing import Any

import ray

from actors.agent import start_on_node
from actors.courier import succeeded
from actors.vault import Owner, Vault, Version
from actors.vault_source import VaultSource

_ANSWER_S = 20.0  # a vault may be in the middle of a large copy
_NUM_COPIES = 2


class Vaults:
    """One vault on every node that hosts ranks.

    Args:
        deadline_s: of reading and writing.
    """

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._on: dict[str, Any] = {}

    def begin(self, epoch: int, node_ids: Iterable[str], source: object) -> None:
        """Have a vault on every node, which holds nothing but the step that ranks begin with.

        Args:
            epoch: that begins.
            node_ids: nodes that host ranks.
            source: of the state that ranks begin with, which may be these vaults.
        """
        kept = source.version if isinstance(source, VaultSource) else None
        begun = {node: vault.begin.remote(epoch, kept) for node, vault in self._on.items()}
        _wait(list(begun.values()))
        for node_id, call in begun.items():
            if not succeeded(call):
                ray.kill(self._on.pop(node_id))
        for node_id in sorted(set(node_ids) - self._on.keys()):
            self._on[node_id] = start_on_node(Vault, node_id)
            self._on[node_id].begin.remote(epoch, None)

    def of_node(self, node_id: str, node_ids: Iterable[str]) -> tuple[Any, ...]:
        """Return the vaults that hold the state of a node's ranks: its own and the next one's."""
        ring = sorted(set(node_ids))
        at = ring.index(node_id)
        nodes = dict.fromkeys(ring[(at + step) % len(ring)] for step in range(_NUM_COPIES))
        return tuple(self._on[node] for node in nodes)

    def newest(self) -> VaultSource | None:
        """Return the newest step of which every rank's state is held by vaults that live."""
        asked = {node_id: vault.held.remote() for node_id, vault in self._on.items()}
        _wait(list(asked.values()))
        held = {node: ray.get(call) for node, call in asked.items() if succeeded(call)}
        version = newest_complete(list(held.values()))
        if version is None:
            return None
        return VaultSource({node: self._on[node] for node in held}, version, self._deadline_s)

    def close(self) -> None:
        """End the vaults."""
        for vault in self._on.values():
            ray.kill(vault)
        self._on.clear()


def newest_complete(held: Sequence[dict[Version, dict[Owner, int]]]) -> Version | None:
    """Return the newest version of which all ranks' copies are somewhere.

    Args:
        held: per vault and version, the ranks whose copies it holds, each with the number of
            ranks that the job had then.
    """
    together: dict[Version, dict[Owner, int]] = {}
    for vault in held:
        for version, owners in vault.items():
            together.setdefault(version, {}).update(owners)
    complete = [
        version for version, owners in together.items() if set(owners.values()) == {len(owners)}
    ]
    return max(complete, default=None)


def _wait(calls: list[ray.ObjectRef]) -> None:
    if calls:
        ray.wait(calls, num_returns=len(calls), timeout=_ANSWER_S)
