"""CuPy's NCCL in one process without a GPU: ranks are threads, messages are copies.

Like NCCL it knows no tags: the n-th send of a pair meets the n-th receive of that pair, and
nothing moves before the group ends. A receive that nobody sends to raises in ``groupEnd``.
"""

import ctypes
import sys
import threading
from collections import defaultdict
from queue import Empty, Queue
from types import ModuleType
from typing import Any

import pytest

VERSION = 23007
_PATIENCE_S = 10.0
_BYTES = {0: 1, 1: 1, 2: 4, 4: 8, 6: 2, 7: 4, 8: 8, 9: 2}


class NcclError(RuntimeError):
    pass


class Fabric:
    """What the ranks of one test share: wires, and a record of all calls."""

    def __init__(self) -> None:
        self.calls: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
        self.unique_ids: list[bytes] = []
        self.aborted: list[int] = []
        self.broken = False
        self.wires: dict[tuple[bytes, int, int], Queue[bytes]] = defaultdict(Queue)
        self.lock = threading.Lock()
        self.open = threading.local()


class FakeCommunicator:
    def __init__(self, fabric: Fabric, num_ranks: int, unique_id: bytes, rank: int) -> None:
        assert unique_id in fabric.unique_ids
        self._fabric, self.num_ranks, self.rank, self._id = fabric, num_ranks, rank, unique_id

    def send(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._queue("send", pointer, count, kind, peer)

    def recv(self, pointer: int, count: int, kind: int, peer: int, stream: int) -> None:
        self._queue("recv", pointer, count, kind, peer)

    def _queue(self, op: str, pointer: int, count: int, kind: int, peer: int) -> None:
        assert self._fabric.open.depth == 1, f"{op} outside a group"
        assert 0 <= peer < self.num_ranks
        self._fabric.calls[self.rank].append((op, peer, count, kind))
        self._fabric.open.queued.append((self, op, pointer, count * _BYTES[kind], peer))

    def _wire(self, source: int, destination: int) -> "Queue[bytes]":
        with self._fabric.lock:
            return self._fabric.wires[self._id, source, destination]

    def move(self, op: str, pointer: int, num_bytes: int, peer: int) -> None:
        if op == "send":
            self._wire(self.rank, peer).put(ctypes.string_at(pointer, num_bytes))
            return
        try:
            message = self._wire(peer, self.rank).get(timeout=_PATIENCE_S)
        except Empty:
            raise NcclError(f"nothing came from {peer}") from None
        assert len(message) == num_bytes, "two messages of different sizes met"
        ctypes.memmove(pointer, message, num_bytes)

    def check_async_error(self) -> None:
        if self._fabric.broken:
            raise NcclError("NCCL_ERROR_REMOTE_ERROR")

    def abort(self) -> None:
        self._fabric.aborted.append(self.rank)


def install(monkeypatch: pytest.MonkeyPatch, version: int = VERSION) -> Fabric:
    """Put the fake in CuPy's place for one test."""
    fabric = Fabric()
    nccl = ModuleType("cupy.cuda.nccl")
    nccl.available = True
    nccl.NCCL_INT8, nccl.NCCL_UINT8, nccl.NCCL_INT32, nccl.NCCL_INT64 = 0, 1, 2, 4
    nccl.NCCL_FLOAT16, nccl.NCCL_FLOAT32, nccl.NCCL_FLOAT64, nccl.NCCL_BFLOAT16 = 6, 7, 8, 9
    nccl.get_version = lambda: version
    nccl.get_unique_id = lambda: _unique_id(fabric)
    nccl.NcclCommunicator = lambda n, unique_id, rank: FakeCommunicator(fabric, n, unique_id, rank)
    nccl.groupStart = lambda: _group_start(fabric)
    nccl.groupEnd = lambda: _group_end(fabric)
    cupy, cuda = ModuleType("cupy"), ModuleType("cupy.cuda")
    cupy.cuda, cuda.nccl = cuda, nccl
    for module in (cupy, cuda, nccl):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fabric


def _unique_id(fabric: Fabric) -> bytes:
    fabric.unique_ids.append(bytes([200 + len(fabric.unique_ids)] * 128))
    return fabric.unique_ids[-1]


def _group_start(fabric: Fabric) -> None:
    fabric.open.depth = getattr(fabric.open, "depth", 0) + 1
    fabric.open.queued = []


def _group_end(fabric: Fabric) -> None:
    fabric.open.depth -= 1
    queued, fabric.open.queued = fabric.open.queued, []
    for op in ("send", "recv"):
        for communicator, kind, pointer, num_bytes, peer in queued:
            if kind == op:
                communicator.move(kind, pointer, num_bytes, peer)
