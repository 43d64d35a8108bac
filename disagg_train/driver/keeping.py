"""When a run's state is kept, in memory and in checkpoints, and when a checkpoint counts.

Ranks copy their state between two steps and store the copy while they train on. The driver
looks in on that now and then, and writes the manifest once all ranks are done.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.config.job import JobConfig
from disagg_train.driver.copy_interval import CopyInterval
from disagg_train.driver.ports import Group
from disagg_train.driver.signals import Deliver
from disagg_train.driver.waiting import await_all, errors_of
from disagg_train.errors import CheckpointError, DisaggTrainError, culprit
from disagg_train.metrics.events import event
from disagg_train.metrics.records import SnapshotOrder, StepRecord, Stored

_PATIENCE = 1.5
"""Ranks give up on slow storage after a step's deadline and say so; who waits for them waits
longer."""


@dataclass(frozen=True)
class Saved:
    """What keeping a state took, on the slowest rank.

    Args:
        steps_done: training steps that the state has behind it.
        to_vaults: whether it went into memory.
        to_folder: whether it went into a checkpoint.
        stall_s: how long the rank stood still.
        busy_s: how long storing took, beside the training.
    """

    steps_done: int
    to_vaults: bool
    to_folder: bool
    stall_s: float
    busy_s: float


@dataclass
class _UnderWay:
    """An order that the groups work on: first all ranks copy, then they store."""

    order: SnapshotOrder
    manifest: Manifest | None
    groups: Sequence[Group]
    copying: list[Future[Sequence[None]]] = field(init=False)
    storing: list[Future[Sequence[Stored]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.copying = [group.snapshot(self.order) for group in self.groups]

    @property
    def futures(self) -> Sequence[Future[Any]]:
        """What is waited for now."""
        return self.storing or self.copying

    def error(self) -> BaseException | None:
        """Return the error to blame if a group failed."""
        errors = errors_of(future for future in self.futures if future.done())
        return culprit(errors) if errors else None

    def is_stored(self) -> bool:
        """Whether all ranks are done; asks for the storing once all have copied."""
        if not self.storing and all(future.done() for future in self.copying):
            self.storing = [group.stored(self.order) for group in self.groups]
        return bool(self.storing) and all(future.done() for future in self.storing)


class Keeper:
    """Orders copies of a run's state, follows them, and makes checkpoints count.

    Args:
        job: says how often, how many are kept, and what a failed checkpoint does.
        store: of the run's checkpoints.
        manifest_of: returns a checkpoint's manifest, still without files.
        keeps_copies: whether there are vaults that keep copies in memory.
        shares_cores: whether storing takes time of the cores that compute.
        resumed_from: steps done of the checkpoint that the run goes on from, which stands.
        clock: seconds, growing.
    """

    def __init__(
        self,
        job: JobConfig,
        store: CheckpointStore,
        manifest_of: Callable[[int], Manifest],
        keeps_copies: bool,
        shares_cores: bool = False,
        resumed_from: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._deadline_s = job.checkpoint, _PATIENCE * job.deadlines.storing_s
        self._store, self._manifest_of, self._keeps_copies = store, manifest_of, keeps_copies
        self._clock = clock
        self._checkpoint_s = clock()
        self._complete = set() if resumed_from is None else {resumed_from}
        self._interval = CopyInterval(job.recovery, shares_cores)
        self._last_copy: int | None = None
        self._groups: Sequence[Group] = ()
        self._under_way: _UnderWay | None = None
        self._lost: tuple[int, BaseException] | None = None
        self._copy_error = ""
        self.num_written = 0
        """Complete checkpoints that this keeper has written."""
        self.newest_copy: int | None = None
        """Steps done of the newest state that the vaults hold of every rank of these groups."""
        self.saved: list[Saved] = []
        """What was kept so far, and what that took."""
        self.notes: list[str] = []
        """What went wrong, though training goes on."""

    @property
    def newest_checkpoint(self) -> int | None:
        """Steps done of the newest complete checkpoint of this run."""
        return max(self._complete, default=None)

    @property
    def is_storing(self) -> bool:
        """Whether ranks are copying or storing their state."""
        return self._under_way is not None

    def attach(self, groups: Sequence[Group]) -> None:
        """Keep the state of these groups from now on; what others had under way is forgotten."""
        if self._under_way is not None and self._under_way.manifest is not None:
            self._checkpoint_s = -math.inf
        self._groups, self._under_way, self._lost = groups, None, None
        self._last_copy = self.newest_copy = None
        self._interval.begin_anew()

    def pauses_after(self, step: int) -> bool:
        """Whether the step after ``step`` waits, as a checkpoint is written before it."""
        return not self._config.asynchronous and self._checkpoint_due(step + 1)

    def order_after(self, step: int, deliver: Deliver = lambda: None) -> SnapshotOrder | None:
        """Ask the groups for their state after ``step``, if that is due.

        To be called when the step after it is about to be handed out. Waits for a checkpoint
        that is still being written where the next one is due.

        Args:
            step: that was handed out last.
            deliver: called between waits, for signals that are held back.

        Raises:
            CheckpointError: one cannot be written, and the job says to stop then.
        """
        self.poll()
        steps_done, folder = step + 1, None
        if self._checkpoint_due(steps_done):
            self.finish(deliver)
            folder = self._begin(steps_done)
        to_vaults = self._copy_due(steps_done)
        if folder is None and not to_vaults:
            return None
        order = self._ask(SnapshotOrder(steps_done, to_vaults, folder))
        if folder is not None and not self._config.asynchronous:
            self.finish(deliver)
        return order

    def note_step(self, record: StepRecord) -> None:
        """Note that a step is done.

        Raises:
            RankError: a rank could not copy its state, though it trains on.
        """
        self._interval.note_step(record.step_time_s)
        if self._lost is not None and record.step >= self._lost[0]:
            raise self._lost[1]

    def poll(self) -> None:
        """Look in on what is under way; never waits.

        An order is dropped where a group failed: the step that fails with it says why.

        Raises:
            CheckpointError: one could not be written, and the job says to stop then.
        """
        under_way = self._under_way
        if under_way is None:
            return
        if (error := under_way.error()) is not None:
            self._under_way = None
            self._drop(under_way.order, error)
        elif under_way.is_stored():
            self._under_way = None
            self._fold(under_way)

    def finish(self, deliver: Deliver = lambda: None) -> None:
        """Wait until nothing is under way.

        Args:
            deliver: called between waits, for signals that are held back.

        Raises:
            CheckpointError: one could not be written, and the job says to stop then.
            RankError: nothing is heard of it for longer than a step's deadline.
        """
        while (under_way := self._under_way) is not None:
            what = f"keeping of the state after {under_way.order.steps_done} steps"
            try:
                await_all(under_way.futures, self._deadline_s, what, deliver)
            except DisaggTrainError:
                if under_way.error() is None:
                    raise
            self.poll()

    def save(self, steps_done: int, deliver: Deliver = lambda: None) -> None:
        """Write a checkpoint now, while the groups are idle, unless there is one of this state.

        Args:
            steps_done: training steps behind the groups' state.
            deliver: called between waits, for signals that are held back.

        Raises:
            CheckpointError: it could not be written, whatever the job says of those on the way.
            RankError: a rank died, hung or raised.
        """
        self.finish(deliver)
        if steps_done in self._complete:
            return
        self._ask(SnapshotOrder(steps_done, folder=self._store.begin(steps_done)))
        self.finish(deliver)
        if steps_done not in self._complete:
            raise self._lost[1] if self._lost else CheckpointError(self.notes.pop())

    def _checkpoint_due(self, steps_done: int) -> bool:
        if steps_done in self._complete:
            return False
        steps, seconds = self._config.every_steps, self._config.every_minutes * 60.0
        if steps and steps_done % steps == 0:
            return True
        return bool(seconds) and self._clock() - self._checkpoint_s >= seconds

    def _copy_due(self, steps_done: int) -> bool:
        if not self._keeps_copies or self._under_way is not None:
            return False
        return self._last_copy is None or steps_done - self._last_copy >= self._interval.steps

    def _begin(self, steps_done: int) -> str | None:
        """Return the folder of a new checkpoint; None where it cannot be made."""
        self._checkpoint_s = self._clock()
        try:
            return self._store.begin(steps_done)
        except CheckpointError as error:
            self._fail(steps_done, str(error))
            return None

    def _ask(self, order: SnapshotOrder) -> SnapshotOrder:
        manifest = None if order.folder is None else self._manifest_of(order.steps_done)
        self._under_way = _UnderWay(order, manifest, self._groups)
        if order.to_vaults:
            self._last_copy = order.steps_done
        return order

    def _fold(self, under_way: _UnderWay) -> None:
        """Take in what became of an order."""
        order, manifest = under_way.order, under_way.manifest
        stored = [one for future in under_way.storing for one in future.result()]
        stall_s, busy_s = max(one.stall_s for one in stored), max(one.busy_s for one in stored)
        self.saved.append(
            Saved(order.steps_done, order.to_vaults, manifest is not None, stall_s, busy_s)
        )
        if order.to_vaults:
            self._note_copy(order.steps_done, _first(one.copy_error for one in stored))
        if manifest is None:
            self._interval.note_copy(stored)
        elif error := _first(one.error for one in stored):
            self._fail(manifest.step, error)
        else:
            self._commit(manifest, stored)

    def _note_copy(self, steps_done: int, error: str) -> None:
        """Note a copy; say that copies fail once, as they are made every few steps."""
        if not error:
            self.newest_copy = steps_done
        elif not self._copy_error:
            self._tell(f"the state after {steps_done} steps is not in memory: {error}", steps_done)
        self._copy_error = error

    def _drop(self, order: SnapshotOrder, error: BaseException) -> None:
        if isinstance(error, CheckpointError) and order.folder is not None:
            self._fail(order.steps_done, str(error))
        else:
            self._lost = order.steps_done, error

    def _commit(self, manifest: Manifest, stored: Sequence[Stored]) -> None:
        files = {path: digest for one in stored for path, digest in one.files.items()}
        try:
            self._store.commit(replace(manifest, files=files))
        except CheckpointError as error:
            self._fail(manifest.step, str(error))
            return
        self._complete.add(manifest.step)
        self.num_written += 1
        event(f"checkpoint {self._store.address(manifest.step)} is complete", manifest.step)
        try:
            self._store.prune(self._config.keep)
        except CheckpointError as error:
            self._tell(f"old checkpoints could not be removed: {error}", manifest.step)

    def _fail(self, steps_done: int, reason: str) -> None:
        message = (
            f"the checkpoint after {steps_done} steps was not written; older ones are as they "
            f"were: {reason}"
        )
        if self._config.on_error == "stop":
            raise CheckpointError(message)
        self._tell(message, steps_done)

    def _tell(self, note: str, steps_done: int) -> None:
        self.notes.append(note)
        event(note, steps_done, level=logging.WARNING, is_note=True)


def _first(errors: Iterable[str]) -> str:
    return next(filter(None, errors), "")
