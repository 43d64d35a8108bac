"""``disagg-train bench checkpoint``: what keeping the state costs the training, in one run.

Checkpoints that are written while training goes on, against ones that it stands still for; and
steps with copies in the vaults' memory against steps without.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from actors.session import Session
from disagg_train.bench.alternation import Paired, measure
from disagg_train.bench.copies import CopyResult, run_copies_on
from disagg_train.bench.jobs import stateful_job, with_steps
from disagg_train.bench.machine import commit, hardware
from disagg_train.bench.statistics import median_ms
from disagg_train.bench.torchrun import job_plans
from disagg_train.bench.under_ray import started_pool
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.config.load import load_job
from disagg_train.driver import loop
from disagg_train.driver.waiting import await_all
from disagg_train.errors import ConfigError
from disagg_train.metrics.records import SnapshotOrder, Stored

_STEPS = 1_000_000
_STEPS_BETWEEN = 2


@dataclass(frozen=True)
class SaveResult:
    """Checkpoints that are written while training goes on, against ones it stands still for.

    Args:
        times: of a save: how long the slowest rank stands still, against the time from the order
            to the manifest of a synchronous one.
        storing_ms: from the copy to the last file, beside the training, on the slowest rank;
            median, as are the following.
        step_ms: a step that nothing is saved beside, as the driver sees it.
        step_beside_ms: a step that begins with an order to save, as the driver sees it.
        checkpoint_bytes: of a checkpoint's files, all ranks together.
    """

    times: Paired
    storing_ms: float
    step_ms: float
    step_beside_ms: float
    checkpoint_bytes: int


@dataclass(frozen=True)
class CheckpointResult:
    """Both measurements, of the same job.

    Args:
        saves: checkpoints.
        copies: copies in memory.
        ranks: of the job.
        blocks: ABBA blocks of each.
        hardware: the machine.
        commit: of the checkout.
    """

    saves: SaveResult
    copies: CopyResult
    ranks: int
    blocks: int
    hardware: Mapping[str, str | int]
    commit: str

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain data."""
        return asdict(self)


def run_checkpoint(blocks: int, num_layers: int) -> CheckpointResult:
    """Measure what checkpoints and copies in memory cost.

    Args:
        blocks: ABBA blocks of each comparison.
        num_layers: of each module, which makes the size of the state.

    Raises:
        ConfigError: there is no block to measure.
        RankError: a rank died, hung or raised.
        PlanError: ranks with copies did not train what those without did.
    """
    if blocks < 1:
        raise ConfigError(f"blocks={blocks}: use at least 1")
    job = load_job(with_steps(stateful_job(num_layers), _STEPS), ["checkpoint.every_minutes=0"])
    with started_pool(2 * job.num_ranks) as pool:
        with pool.session(job) as session, tempfile.TemporaryDirectory() as folder:
            saves = _run_saves(_Saving(session, CheckpointStore(folder)), blocks)
        copies = run_copies_on(pool, job, blocks)
    return CheckpointResult(saves, copies, job.num_ranks, blocks, hardware(), commit())


def _run_saves(saving: "_Saving", blocks: int) -> SaveResult:
    beside = _Asynchronous(saving)
    times = measure(beside, _Synchronous(saving), blocks, steps_per_run=1)
    return SaveResult(
        times,
        storing_ms=median_ms(beside.storing_s),
        step_ms=median_ms(saving.step_s),
        step_beside_ms=median_ms(beside.step_s),
        checkpoint_bytes=saving.newest_bytes(),
    )


class _Saving:
    """A session that trains step after step and saves in between.

    Args:
        session: ranks under Ray.
        store: of the checkpoints.
    """

    def __init__(self, session: Session, store: CheckpointStore) -> None:
        self._session, self._store = session, store
        self._plans, self._steps_done = job_plans(session.job), 0
        self.step_s: list[float] = []
        """Of the steps that nothing was saved beside."""

    def train(self) -> None:
        """Train a few steps."""
        for _ in range(_STEPS_BETWEEN):
            begin_s = perf_counter()
            self.step()
            self.step_s.append(perf_counter() - begin_s)

    def step(self) -> None:
        """Train a step."""
        plan = next(self._plans)
        running = [group.train(plan, None) for group in self._session.groups]
        loop.collect(running, self._session.job.deadlines.step_s)
        self._steps_done += 1

    def order(self) -> SnapshotOrder:
        """Have all ranks begin to save, before the next step."""
        order = SnapshotOrder(self._steps_done, folder=self._store.begin(self._steps_done))
        for group in self._session.groups:
            group.snapshot(order)
        return order

    def complete(self, order: SnapshotOrder) -> list[Stored]:
        """Wait until all ranks have saved, and write the manifest; return how that went.

        Raises:
            RankError: a rank failed.
        """
        job, groups = self._session.job, self._session.groups
        storing = [group.stored(order) for group in groups]
        await_all(storing, job.deadlines.step_s, "save")
        stored = [one for future in storing for one in future.result()]
        files = {path: digest for one in stored for path, digest in one.files.items()}
        self._store.commit(Manifest(order.steps_done, job.model_dump(mode="json"), files))
        return stored

    def newest_bytes(self) -> int:
        """Return the size of the newest checkpoint's files."""
        folder = Path(self._store.address(self._store.steps()[-1]))
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def prune(self) -> None:
        """Remove all checkpoints but the newest."""
        self._store.prune(1)


class _Contestant(ABC):
    """One of two ways to save."""

    def __init__(self, saving: _Saving) -> None:
        self.losses: list[float] = []
        self._saving = saving

    def run(self, count: int) -> float:
        """Save so often; return seconds per save."""
        return median(self._save() for _ in range(count))

    @abstractmethod
    def _save(self) -> float: ...


class _Asynchronous(_Contestant):
    """Saves while the next step runs; its time is the slowest rank's stall."""

    name = "asynchronous"

    def __init__(self, saving: _Saving) -> None:
        super().__init__(saving)
        self.storing_s: list[float] = []
        self.step_s: list[float] = []

    def _save(self) -> float:
        self._saving.train()
        begin_s = perf_counter()
        order = self._saving.order()
        self._saving.step()
        self.step_s.append(perf_counter() - begin_s)
        stored = self._saving.complete(order)
        self._saving.prune()
        self.storing_s.append(max(one.busy_s for one in stored))
        return max(one.stall_s for one in stored)


class _Synchronous(_Contestant):
    """Saves while nothing else runs."""

    name = "synchronous"

    def _save(self) -> float:
        self._saving.train()
        begin_s = perf_counter()
        self._saving.complete(self._saving.order())
        elapsed_s = perf_counter() - begin_s
        self._saving.prune()
        return elapsed_s
