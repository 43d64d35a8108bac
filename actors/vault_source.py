"""State out of the vaults, read as DCP reads a checkpoint."""

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from torch import Tensor
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from actors.vault import Bytes, HeldChunk, Owner, Part, Version
from disagg_train.errors import ClusterError

_LOAD_BYTES = 1 << 28
"""Read at once from a vault; Ray's object store has to hold so much per rank."""


@dataclass(frozen=True)
class VaultSource:
    """The copies of one step as a source of state.

    Args:
        vaults: that hold them, by the id of their node.
        version: of the copies.
        deadline_s: of every answer.
    """

    vaults: Mapping[str, Any]
    version: Version
    deadline_s: float

    @property
    def steps_done(self) -> int:
        """Training steps that the state has behind it."""
        return self.version[0]

    def reader(self, module: str) -> StorageReader:
        """Return a reader of a module's state, whatever layout it was saved in."""
        return VaultReader(self, module)


@dataclass(frozen=True)
class _Found:
    """Where a chunk is: in whose copy in which node's vault, and what it is."""

    node_id: str
    owner: Owner
    position: int
    chunk: HeldChunk

    def part(self, item: ReadItem) -> Part:
        offsets, lengths = tuple(item.storage_offsets), tuple(item.lengths)
        return Part(*self.owner, self.position, offsets, lengths)

    def num_bytes(self, item: ReadItem) -> int:
        return math.prod(item.lengths) * self.chunk.itemsize


class VaultReader(StorageReader):
    """Reads a module's state from vaults; from this node's own where it has what is needed.

    Args:
        source: the vaults, and the step.
        module: name of the module.
    """

    def __init__(self, source: VaultSource, module: str) -> None:
        self._source, self._module = source, module
        self._found: dict[MetadataIndex, _Found] = {}

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return all tensors and their chunks.

        Raises:
            ClusterError: a vault does not answer.
        """
        version, here = self._source.version, ray.get_runtime_context().get_node_id()
        calls = {
            node_id: vault.index.remote(version, self._module)
            for node_id, vault in self._source.vaults.items()
        }
        answers = dict(zip(calls, self._get(list(calls.values())), strict=True))
        for node_id in sorted(answers, key=lambda node_id: node_id != here):
            self._note(node_id, answers[node_id])
        return Metadata(self._tensors())

    def _note(self, node_id: str, held: Mapping[Owner, Mapping[int, HeldChunk]]) -> None:
        for owner, chunks in held.items():
            for position, chunk in chunks.items():
                index = MetadataIndex(chunk.name, chunk.offsets)
                self._found.setdefault(index, _Found(node_id, owner, position, chunk))

    def _tensors(self) -> dict[str, TensorStorageMetadata]:
        tensors: dict[str, TensorStorageMetadata] = {}
        for found in self._found.values():
            chunk = found.chunk
            tensor = tensors.setdefault(chunk.name, _without_chunks(chunk))
            box = ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes))
            tensor.chunks.append(box)
        return tensors

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Fetch all that a plan needs, in few calls.

        Raises:
            ClusterError: a vault does not answer.
        """
        for load in self._loads(plan.items):
            calls = [
                self._source.vaults[node_id].read.remote(
                    self._source.version, [found.part(item) for item, found in wanted]
                )
                for node_id, wanted in load.items()
            ]
            for wanted, values in zip(load.values(), self._get(calls), strict=True):
                for (item, found), value in zip(wanted, values, strict=True):
                    target = planner.resolve_tensor(item)
                    target.copy_(_tensor_of(value, found.chunk.dtype).view(target.shape))
                    planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _loads(
        self, items: Sequence[ReadItem]
    ) -> Iterator[dict[str, list[tuple[ReadItem, _Found]]]]:
        """Yield what is to be read by vault, a limited amount at a time."""
        load: dict[str, list[tuple[ReadItem, _Found]]] = {}
        size_bytes = 0
        for item in items:
            if size_bytes >= _LOAD_BYTES:
                yield load
                load, size_bytes = {}, 0
            found = self._found[item.storage_index]
            load.setdefault(found.node_id, []).append((item, found))
            size_bytes += found.num_bytes(item)
        yield load

    def _get(self, calls: list[ray.ObjectRef]) -> list[Any]:
        source = self._source
        try:
            answers: list[Any] = ray.get(calls, timeout=source.deadline_s)
        except RayError as error:
            raise ClusterError(
                f"a vault with the copies of step {source.steps_done} did not answer in "
                f"{source.deadline_s:g} s: {error}"
            ) from None
        return answers

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Forget what was found."""
        self._found.clear()

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: what the metadata says is known."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans as they are."""
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Refuse addresses: vaults have none."""
        return False


def _without_chunks(chunk: HeldChunk) -> TensorStorageMetadata:
    properties = TensorProperties(dtype=getattr(torch, chunk.dtype))
    return TensorStorageMetadata(properties, torch.Size(chunk.shape), [])


def _tensor_of(value: Bytes, dtype: str) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is read-only, and only read
        return torch.from_numpy(value).view(getattr(torch, dtype))
