"""Copies of a rank's state, stored on a thread of their own while the rank trains on."""

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from threading import Thread
from typing import Protocol

import torch.distributed as dist

from disagg_train.checkpoint.sharded import Snapshot, save_module
from disagg_train.config.secret_values import masked
from disagg_train.errors import CheckpointError
from disagg_train.metrics.records import SnapshotOrder, Stored

_GOODBYE_S = 5.0

Send = Callable[[Snapshot], None]


class _State(Protocol):
    """What can be copied: ``RankState``."""

    def snapshot(self, steps_done: int, everything: bool) -> Snapshot: ...


@dataclass(frozen=True)
class _UnderWay:
    order: SnapshotOrder
    stall_s: float
    storing: "Future[Stored]"


class Snapshots:
    """A rank's snapshots, one under way at a time.

    All ranks of the group take the same orders, in the same order: they write a checkpoint
    together.

    Args:
        state: of the rank.
        saving_group: the ranks of its actor group; used by nothing else. None for a rank alone.
        deadline_s: of storing a snapshot.
    """

    def __init__(
        self, state: _State, saving_group: dist.ProcessGroup | None, deadline_s: float
    ) -> None:
        self._state, self._group, self._deadline_s = state, saving_group, deadline_s
        self._latest: _UnderWay | None = None

    def take(self, order: SnapshotOrder, send: Send | None) -> None:
        """Copy the state, and start to store the copy.

        It waits for the snapshot before, whose memory is used again.

        Args:
            order: what to do with it.
            send: brings it to the vaults.

        Raises:
            CheckpointError: the snapshot before is not stored before the deadline.
        """
        begin_s = time.perf_counter()
        if self._latest is not None:
            self._wait(self._latest)
        everything = order.folder is not None
        snapshot = self._state.snapshot(order.steps_done, everything)
        storing: Future[Stored] = Future()
        arguments = order, snapshot, send if order.to_vaults else None, storing
        Thread(target=self._store, args=arguments, name="snapshot", daemon=True).start()
        self._latest = _UnderWay(order, time.perf_counter() - begin_s, storing)

    def stored(self, order: SnapshotOrder) -> Stored:
        """Wait until the latest snapshot is stored; return how that went.

        Raises:
            CheckpointError: it is not stored before the deadline.
        """
        latest = self._latest
        assert latest is not None and latest.order == order, f"{order} is not the latest order"
        self._wait(latest)
        return replace(latest.storing.result(), stall_s=latest.stall_s)

    def close(self) -> None:
        """Give the snapshot under way a moment to be stored, then leave it to itself."""
        if self._latest is not None:
            with contextlib.suppress(TimeoutError):
                self._latest.storing.result(_GOODBYE_S)

    def _wait(self, under_way: _UnderWay) -> None:
        try:
            under_way.storing.result(self._deadline_s)
        except TimeoutError:
            raise CheckpointError(
                f"the state after {under_way.order.steps_done} steps is not stored after "
                f"{self._deadline_s:g} s ({under_way.order.folder or 'vaults'}); is the storage "
                f"slow? raise deadlines.storing_s"
            ) from None

    def _store(
        self,
        order: SnapshotOrder,
        snapshot: Snapshot,
        send: Send | None,
        storing: "Future[Stored]",
    ) -> None:
        begin_s = time.perf_counter()
        files: dict[str, str] = {}
        error, copy_error = "", ""
        try:
            if send is not None:
                send(snapshot)
        except Exception as reason:  # the checkpoint is written all the same
            copy_error = masked(f"cannot copy the state to the vaults: {reason!r}")
        try:
            if order.folder is not None:
                files = self._write(order.folder, snapshot)
        except Exception as reason:
            error = masked(str(reason))
        busy_s = time.perf_counter() - begin_s
        storing.set_result(Stored(0.0, busy_s, files, error, copy_error))

    def _write(self, folder: str, snapshot: Snapshot) -> dict[str, str]:
        """Write module after module, up to one that fails: it fails on all ranks of the group."""
        files: dict[str, str] = {}
        for module in snapshot.trained:
            sums = save_module(f"{folder}/{module}", snapshot.of(module), self._group)
            files |= {f"{module}/{name}": digest for name, digest in sums.items()}
        return files
