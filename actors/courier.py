"""Takes a rank's copy of its state to the vaults: its own node's and the next node's."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from actors.vault import Bytes, HeldChunk, Label
from disagg_train.checkpoint.sharded import Chunk, Snapshot
from disagg_train.errors import ClusterError

_LOAD_BYTES = 1 << 28
"""Sent at once; Ray's object store has to hold so much per rank."""


@dataclass(frozen=True)
class Courier:
    """The way of a rank's copies into memory that outlives the rank.

    Args:
        vaults: that are to hold them.
        epoch: of the rank's communicators.
        num_ranks: of the whole job.
        group: the rank's actor group.
        rank: its number in the group.
        deadline_s: for each load of chunks.
    """

    vaults: tuple[Any, ...]
    epoch: int
    num_ranks: int
    group: str
    rank: int
    deadline_s: float

    def send(self, snapshot: Snapshot) -> None:
        """Send what training changes, and return once it is held.

        A vault that fails is left out, as long as another one takes everything.

        Raises:
            ClusterError: no vault took it.
        """
        label = Label(self.epoch, self.num_ranks, self.group, self.rank, snapshot.steps_done)
        vaults, loads = list(self.vaults), list(_loads(snapshot))
        for number, load in enumerate(loads):
            is_first, is_last = number == 0, number == len(loads) - 1
            about = [_described(module, chunk) for module, chunk in load]
            values = ray.put([_bytes_of(chunk) for _, chunk in load])
            calls = [v.keep.remote(label, about, values, is_first, is_last) for v in vaults]
            vaults = [v for v, ok in zip(vaults, self._kept(calls), strict=True) if ok]
        if not vaults:
            raise ClusterError(
                f"no vault took the state of group {self.group!r} rank {self.rank} in "
                f"{self.deadline_s:g} s; is memory of its node full?"
            )

    def _kept(self, calls: Sequence[ray.ObjectRef]) -> list[bool]:
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=self.deadline_s)
        return [call in done and succeeded(call) for call in calls]


def succeeded(call: ray.ObjectRef) -> bool:
    """Return whether a call is done, and not by an error."""
    try:
        ray.get(call, timeout=0)
    except RayError:
        return False
    return True


def _loads(snapshot: Snapshot) -> Iterator[list[tuple[str, Chunk]]]:
    """Yield all trained chunks with their modules, in loads of a limited size; one at least."""
    load: list[tuple[str, Chunk]] = []
    size_bytes = 0
    for module, chunks in snapshot.trained.items():
        for chunk in chunks:
            if size_bytes >= _LOAD_BYTES:
                yield load
                load, size_bytes = [], 0
            load.append((module, chunk))
            size_bytes += chunk.tensor.nbytes
    yield load


def _described(module: str, chunk: Chunk) -> HeldChunk:
    tensor = chunk.tensor
    dtype = str(tensor.dtype).removeprefix("torch.")
    sizes = tuple(tensor.shape)
    return HeldChunk(
        module, chunk.name, chunk.full_shape, chunk.offsets, sizes, dtype, tensor.itemsize
    )


def _bytes_of(chunk: Chunk) -> Bytes:
    values: Bytes = chunk.tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
    return values
