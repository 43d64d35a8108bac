"""Rows of a buffer, as tensors: read as a message, or copied within a process."""

from itertools import pairwise

import torch
from torch import Tensor

from disagg_train.boundary.buffers import MessageBuffers
from disagg_train.boundary.exchange import Rows

_SHORT_RUN = 16


def is_scattered(rows: Rows) -> bool:
    """Whether rows are no run of neighbours; then a message of them is a copy."""
    return not rows or rows != tuple(range(rows[0], rows[0] + len(rows)))


def index_of(rows: Rows, device: torch.device) -> Tensor | slice:
    """Return an index of rows; a run of neighbours is a slice, which needs no copy.

    On a GPU the index travels from pinned memory, so that the host does not wait for it.
    """
    if not is_scattered(rows):
        return slice(rows[0], rows[-1] + 1)
    index: Tensor = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        index = index.pin_memory().to(device, non_blocking=True)
    return index


def read(source_TD: Tensor, rows: Rows, buffers: MessageBuffers) -> Tensor:
    """Return rows as one contiguous message: a view of neighbours, else a copy.

    Args:
        source_TD: what to read.
        rows: which rows, in this order.
        buffers: memory for a copy; give it back once the message is sent.
    """
    index = index_of(rows, source_TD.device)
    if isinstance(index, slice):
        return source_TD[index].contiguous()
    message_TD = buffers.take(len(rows))
    return torch.index_select(source_TD, 0, index, out=message_TD)


def write(rows_TD: Tensor, rows: Rows, message_TD: Tensor) -> None:
    """Put a message into its rows; on CPUs run by run where runs are long, for a third of the cost.

    Args:
        rows_TD: what to write.
        rows: which rows, in the order of the message.
        message_TD: their values.
    """
    runs = _runs(rows)
    if rows_TD.device.type != "cpu" or len(runs) * _SHORT_RUN > len(rows):
        rows_TD[index_of(rows, rows_TD.device)] = message_TD
        return
    parts = message_TD.split([length for _, length in runs])
    for (first, length), part_TD in zip(runs, parts, strict=True):
        rows_TD[first : first + length] = part_TD


def _runs(rows: Rows) -> list[tuple[int, int]]:
    """Return the runs of neighbours that ``rows`` consist of, as (first row, length)."""
    starts = [i for i, row in enumerate(rows) if not i or row != rows[i - 1] + 1]
    return [(rows[a], b - a) for a, b in pairwise([*starts, len(rows)])]


def copy_local(local: tuple[Rows, Rows], source_TD: Tensor, rows_TD: Tensor) -> None:
    """Copy the rows that this process holds already to where they are needed.

    Args:
        local: rows to read and rows to write.
        source_TD: what to read.
        rows_TD: what to write; one pass where the written rows are neighbours.
    """
    reads, writes = (index_of(rows, source_TD.device) for rows in local)
    if isinstance(writes, slice) and isinstance(reads, Tensor):
        torch.index_select(source_TD, 0, reads, out=rows_TD[writes])
    else:
        rows_TD[writes] = source_TD[reads]
