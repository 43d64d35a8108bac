"""One actor per node that keeps copies of ranks' states in its own memory. Knows no torch.

Objects that a rank puts into Ray's store vanish with the rank, so what comes is copied.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray

_VERSIONS_KEPT = 2


@dataclass(frozen=True)
class Label:
    """Whose copy, of when.

    Args:
        epoch: of the communicators that the rank belonged to.
        num_ranks: of the whole job then.
        group: actor group of the rank.
        rank: its number in the group.
        steps_done: training steps that the state has behind it.
    """

    epoch: int
    num_ranks: int
    group: str
    rank: int
    steps_done: int


@dataclass(frozen=True)
class HeldChunk:
    """A box of a full tensor, without its values.

    Args:
        module: that the tensor belongs to.
        name: full name of the tensor.
        shape: of the full tensor.
        offsets: where the box begins, per dim.
        sizes: of the box, per dim.
        dtype: name of torch's type.
        itemsize: bytes of a value.
    """

    module: str
    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    dtype: str
    itemsize: int


@dataclass(frozen=True)
class Part:
    """What to read: a part of a chunk that a rank's copy holds.

    Args:
        group: actor group of the rank.
        rank: its number in the group.
        position: of the chunk in the copy.
        offsets: inside the chunk.
        sizes: of the part.
    """

    group: str
    rank: int
    position: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


Bytes = NDArray[np.uint8]
Owner = tuple[str, int]
"""A group and a number in it."""
Version = tuple[int, int]
"""Training steps done, and the epoch in which the copy was made: a state may be copied again in
another layout before the next step."""


class _Copy:
    """A rank's state; it counts once it is sealed."""

    def __init__(self, num_ranks: int) -> None:
        self.num_ranks, self.sealed = num_ranks, False
        self.chunks: list[HeldChunk] = []
        self.values: list[Bytes] = []


@ray.remote(num_cpus=0, max_restarts=-1)
class Vault:
    """Copies of ranks' states, of the newest steps. Started again after a death, it is empty."""

    def __init__(self) -> None:
        self._epoch = 0
        self._copies: dict[Version, dict[Owner, _Copy]] = {}

    def begin(self, epoch: int, version: Version | None) -> None:
        """Forget the copies of earlier epochs but those of one version, and refuse new ones.

        What later steps left came out of a past that did not happen. Ranks' calls may overtake
        this one, so what they have sent in the new epoch stays.
        """
        self._epoch = epoch
        self._copies = {
            known: here
            for known, here in self._copies.items()
            if known == version or known[1] >= epoch
        }

    def keep(
        self,
        label: Label,
        chunks: Sequence[HeldChunk],
        values: Sequence[Bytes],
        is_first: bool,
        is_last: bool,
    ) -> None:
        """Copy a part of a rank's state; parts come in order.

        Args:
            label: whose.
            chunks: what the values are.
            values: one array of bytes per chunk.
            is_first: whether a new copy begins.
            is_last: whether it is complete now.
        """
        if label.epoch < self._epoch:
            return
        version, owner = (label.steps_done, label.epoch), (label.group, label.rank)
        here = self._copies.setdefault(version, {})
        if is_first:
            self._forget_old()
            here[owner] = _Copy(label.num_ranks)
        copy = here[owner]
        copy.chunks += chunks
        copy.values += [value.copy() for value in values]
        copy.sealed = is_last

    def _forget_old(self) -> None:
        for version in sorted(self._copies)[:-_VERSIONS_KEPT]:
            del self._copies[version]

    def held(self) -> dict[Version, dict[Owner, int]]:
        """Return per version the ranks whose state is held, and of how many it was then."""
        return {
            version: {owner: copy.num_ranks for owner, copy in here.items() if copy.sealed}
            for version, here in self._copies.items()
        }

    def index(self, version: Version, module: str) -> dict[Owner, dict[int, HeldChunk]]:
        """Return what is held of a module, by rank and position."""
        return {
            owner: {at: chunk for at, chunk in enumerate(copy.chunks) if chunk.module == module}
            for owner, copy in self._copies.get(version, {}).items()
            if copy.sealed
        }

    def read(self, version: Version, parts: Sequence[Part]) -> list[Bytes]:
        """Return the values of parts, in order."""
        here = self._copies[version]
        return [_cut(here[part.group, part.rank], part) for part in parts]


def _cut(copy: _Copy, part: Part) -> Bytes:
    chunk, value = copy.chunks[part.position], copy.values[part.position]
    whole = value.reshape(*chunk.sizes, chunk.itemsize)
    ranges = tuple(slice(o, o + n) for o, n in zip(part.offsets, part.sizes, strict=True))
    return np.ascontiguousarray(whole[ranges]).reshape(-1)
