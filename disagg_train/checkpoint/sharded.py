"""State as chunks: boxes of named full tensors, written and read by torch's DCP.

Whoever holds a part of a tensor writes it, and whoever needs a part reads it, whatever the
layouts of the two. A module's state is a folder with DCP's files and its ``.metadata``.
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor
from torch.distributed.checkpoint import StorageReader
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from disagg_train.errors import CheckpointError


@dataclass(frozen=True)
class Chunk:
    """A box of a full tensor.

    Args:
        name: of the full tensor.
        full_shape: of the full tensor.
        offsets: where the box begins in it.
        tensor: the box's elements; may be a view.
    """

    name: str
    full_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor

    @property
    def box(self) -> ChunkStorageMetadata:
        """The box as DCP has it."""
        return ChunkStorageMetadata(torch.Size(self.offsets), self.tensor.shape)


@dataclass(frozen=True)
class Snapshot:
    """A copy of a rank's state on its host, of one step.

    Args:
        steps_done: training steps that the state has behind it.
        trained: by module, what training changes; copies, valid until the next snapshot.
        frozen: by module, what it does not change, where that was asked for.
    """

    steps_done: int
    trained: Mapping[str, Sequence[Chunk]]
    frozen: Mapping[str, Sequence[Chunk]]

    def of(self, module: str) -> list[Chunk]:
        """Return all chunks of a module."""
        return [*self.trained[module], *self.frozen.get(module, ())]


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint as a source of state.

    Args:
        folder: the checkpoint's own folder, a path or an address that fsspec knows.
        steps_done: training steps that the state has behind it.
    """

    folder: str
    steps_done: int

    def reader(self, module: str) -> StorageReader:
        """Return a reader of a module's state, whatever layout it was saved in."""
        return storage_reader(f"{self.folder}/{module}")


def storage_reader(folder: str) -> StorageReader:
    """Return DCP's reader of a module's folder."""
    path = _local_path(folder)
    return dcp.FileSystemReader(path) if path else dcp.FsspecReader(folder)


def save_module(
    folder: str, chunks: Sequence[Chunk], group: dist.ProcessGroup | None = None
) -> dict[str, str]:
    """Write a module's state; all ranks of a group call this together.

    Where one of them fails, all of them raise.

    Args:
        folder: the module's, a path or an address that fsspec knows.
        chunks: what this rank writes; all ranks' chunks together tile every tensor.
        group: the ranks; None for this process alone.

    Returns:
        Files that this rank wrote, by name -> SHA-256.

    Raises:
        CheckpointError: the folder cannot be written, or chunks do not tile a tensor.
    """
    path = _local_path(folder)
    options = {"per_thread_copy_ahead": 0}  # chunks are on the host already
    if path:
        writer = dcp.FileSystemWriter(path, **options)
    else:
        writer = dcp.FsspecWriter(folder, sync_files=False, **options)
    writer.fs = files = _HashedFiles(writer.fs)
    try:
        dcp.save(
            {},
            storage_writer=writer,
            planner=_ChunkWriting(chunks),
            process_group=group,
            no_dist=group is None,
        )
    except dcp.api.CheckpointException as error:
        causes = (f"rank {rank}: {_told(cause)}" for rank, (cause, _) in error.failures.items())
        raise CheckpointError(f"cannot write {folder}: {'; '.join(causes)}") from error
    except (RuntimeError, ValueError) as error:  # a peer that died, or torn down groups
        raise CheckpointError(f"cannot write {folder}: {_told(error)}") from error
    return files.sums


class ModuleState:
    """A module's saved state, of which any boxes can be read.

    Args:
        reader: of its folder, or of wherever else it is kept.
        where: what it is, for errors.

    Raises:
        CheckpointError: it cannot be read.
    """

    def __init__(self, reader: StorageReader, where: str) -> None:
        self._reader, self._where = reader, where
        try:
            metadata = reader.read_metadata()
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            raise CheckpointError(f"cannot read {where}: {_told(error)}") from error
        reader.set_up_storage_reader(metadata, is_coordinator=True)
        self._tensors: Mapping[str, TensorStorageMetadata] = metadata.state_dict_metadata

    @property
    def names(self) -> Collection[str]:
        """Names of all tensors."""
        return self._tensors.keys()

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a full tensor."""
        return tuple(self._tensors[name].size)

    def read(self, name: str) -> Tensor:
        """Return a full tensor as it was saved.

        Raises:
            CheckpointError: it cannot be read.
        """
        found = self._tensors[name]
        tensor = torch.empty(found.size, dtype=found.properties.dtype)
        self.fill([Chunk(name, self.shape(name), (0,) * tensor.dim(), tensor)])
        return tensor

    @torch.no_grad()
    def fill(self, chunks: Sequence[Chunk]) -> None:
        """Read boxes into the tensors of chunks, rounded to their types.

        Raises:
            CheckpointError: a tensor is not there whole, has another shape, or cannot be read.
        """
        planner = _ChunkReading(chunks)
        items = [item for number in range(len(chunks)) for item in self._items(chunks, number)]
        try:
            plan = self._reader.prepare_local_plan(LoadPlan(items))
            self._reader.read_data(plan, planner).wait()
        except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
            raise CheckpointError(f"cannot read {self._where}: {_told(error)}") from error

    def _items(self, chunks: Sequence[Chunk], number: int) -> list[ReadItem]:
        """Return what is to be read of one chunk; an item's index says of which."""
        chunk = chunks[number]
        saved = self._tensors.get(chunk.name)
        if saved is None:
            raise CheckpointError(
                f"{self._where} has no {chunk.name}; a job that trains what an earlier one did not "
                f"begins from that one's weights with `start_from`"
            )
        if tuple(saved.size) != chunk.full_shape:
            raise CheckpointError(
                f"{self._where}: {chunk.name} is {list(saved.size)} there, but "
                f"{list(chunk.full_shape)} in this job; give the module the sizes that it had"
            )
        items = create_read_items_for_chunk_list(chunk.name, saved, [chunk.box])
        if sum(math.prod(item.lengths) for item in items) != chunk.tensor.numel():
            raise CheckpointError(f"{self._where} has not all of {chunk.name}")
        return [_for_chunk(item, number) for item in items]


def _for_chunk(item: ReadItem, number: int) -> ReadItem:
    index = MetadataIndex(item.dest_index.fqn, item.dest_index.offset, number)
    return ReadItem(
        type=item.type,
        dest_index=index,
        dest_offsets=item.dest_offsets,
        storage_index=item.storage_index,
        storage_offsets=item.storage_offsets,
        lengths=item.lengths,
    )


class _ChunkWriting(DefaultSavePlanner):
    """Plans a save of chunks; the global plan, with its check of tiling, is DCP's own."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._chunks = {MetadataIndex(chunk.name, chunk.offsets): chunk for chunk in chunks}
        assert len(self._chunks) == len(chunks), "a rank writes the same chunk twice"

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([_write_item(index, c) for index, c in self._chunks.items()])
        return self.plan

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """Plan as DCP does, but refuse what two ranks write, of which it would drop one."""
        written: Counter[str] = Counter()
        for item in (item for plan in all_plans for item in plan.items):
            written[item.index.fqn] += math.prod(item.tensor_data.chunk.sizes)
        plans, metadata = super().create_global_plan(all_plans)
        for name, tensor in metadata.state_dict_metadata.items():
            if written[name] != math.prod(tensor.size):
                raise ValueError(
                    f"{name}: ranks write {written[name]} of its {math.prod(tensor.size)} elements"
                )
        return plans, metadata

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        return self._chunks[write_item.index].tensor


def _write_item(index: MetadataIndex, chunk: Chunk) -> WriteItem:
    properties = TensorProperties(dtype=chunk.tensor.dtype)
    data = TensorWriteData(chunk.box, properties, torch.Size(chunk.full_shape))
    return WriteItem(index=index, type=WriteItemType.SHARD, tensor_data=data)


class _ChunkReading(LoadPlanner):
    """Hands a storage reader the parts of chunks that it is to fill.

    Readers are given their plan, so that of a planner only the way of the data is left.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        tensor = self._chunks[read_item.dest_index.index].tensor
        for dim, (offset, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            tensor = tensor.narrow(dim, offset, length)
        return tensor

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """Do nothing: what was filled is a view of the chunk."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise NotImplementedError

    def set_up_planner(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError

    def create_local_plan(self) -> LoadPlan:
        raise NotImplementedError

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        raise NotImplementedError

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        raise NotImplementedError


class _HashedFiles:
    """A file system of DCP's writers that hashes what is written while it is written.

    To read a file again would cost an object store as much as writing it, and would hash what a
    failing disk made of it.
    """

    def __init__(self, files: Any) -> None:
        self._files = files
        self.sums: dict[str, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Open a file; errors of writing name it, as the system's own do not."""
        try:
            with self._files.create_stream(path, mode) as stream:
                hashed = _HashedStream(stream)
                yield hashed
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None
        self.sums[_name(path)] = hashed.sum.hexdigest()

    def rename(self, path: Any, new_path: Any) -> None:
        self._files.rename(path, new_path)
        self.sums[_name(new_path)] = self.sums.pop(_name(path))


class _HashedStream:
    def __init__(self, stream: Any) -> None:
        self._stream, self.sum = stream, hashlib.sha256()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, content: Any) -> int:
        self.sum.update(content)
        return int(self._stream.write(content))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _name(path: Any) -> str:
    return str(path).rpartition("/")[2]


def _local_path(folder: str) -> str | None:
    """Return the path of a folder, or None if it is not one of this machine's file system."""
    fs, path = url_to_fs(folder)
    return str(path) if isinstance(fs, LocalFileSystem) else None
