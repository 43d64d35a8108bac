"""Memory of a boundary's messages: taken, given back, and taken again.

On CPUs fresh memory costs page faults, as much as the copy that fills it, so buffers are
kept here. On GPUs torch's caching allocator does the same, and ``record_stream`` tells it
what is still in use, so nothing is kept.
"""

from collections import defaultdict

import torch
from torch import Tensor


class MessageBuffers:
    """Buffers of ``[rows, D]``, in sizes rounded up so that they fit again.

    Args:
        width: D, values per row.
        dtype: of the values.
        device: where the buffers live.
    """

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self._width, self._dtype, self._device = width, dtype, device
        self._keeps = device.type == "cpu"
        self._free: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._taken: dict[int, Tensor] = {}
        self._bytes = self._peak_bytes = 0

    def take(self, num_rows: int) -> Tensor:
        """Return a buffer of ``num_rows`` rows; what is in it is undefined."""
        if not num_rows:
            return torch.empty(0, self._width, dtype=self._dtype, device=self._device)
        capacity = _capacity(num_rows) if self._keeps else num_rows
        free = self._free[capacity]
        whole_TD = free.pop() if free else self._new(capacity)
        self._taken[whole_TD.data_ptr()] = whole_TD
        self._bytes += self._bytes_of(whole_TD)
        self._peak_bytes = max(self._peak_bytes, self._bytes)
        return whole_TD[:num_rows]

    def give_back(self, rows_TD: Tensor) -> None:
        """Let a taken buffer be taken again; tensors that were not taken here are ignored."""
        whole_TD = self._taken.pop(rows_TD.data_ptr(), None)
        if whole_TD is None:
            return
        self._bytes -= self._bytes_of(whole_TD)
        if self._keeps:
            self._free[len(whole_TD)].append(whole_TD)

    def take_peak_bytes(self) -> int:
        """Return the most bytes taken at once since the last call."""
        peak, self._peak_bytes = self._peak_bytes, self._bytes
        return peak

    def _new(self, capacity: int) -> Tensor:
        return torch.empty(capacity, self._width, dtype=self._dtype, device=self._device)

    @staticmethod
    def _bytes_of(rows_TD: Tensor) -> int:
        num_bytes: int = rows_TD.numel() * rows_TD.itemsize
        return num_bytes


def _capacity(num_rows: int) -> int:
    """Round up to a step of an eighth of the power of two above: at most 1/4 is idle."""
    step = max((1 << (num_rows - 1).bit_length()) // 8, 1)
    return -(-num_rows // step) * step
