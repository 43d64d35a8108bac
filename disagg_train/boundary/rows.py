"""Rows of a buffer, as tensors: read as a message, or copied within a process."""

import torch
from torch import Tensor

from disagg_train.boundary.exchange import Rows


def index_of(rows: Rows, device: torch.device) -> Tensor | slice:
    """Return an index of rows; a run of neighbours is a slice, which needs no copy.

    On a GPU the index travels from pinned memory, so that the host does not wait for it.
    """
    if rows and rows == tuple(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[-1] + 1)
    index: Tensor = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        index = index.pin_memory().to(device, non_blocking=True)
    return index


def read(source_TD: Tensor, rows: Rows) -> Tensor:
    """Return rows as one contiguous message: a view of neighbours, else a copy."""
    return source_TD[index_of(rows, source_TD.device)].contiguous()


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
