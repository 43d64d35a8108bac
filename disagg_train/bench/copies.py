"""Steps with copies of the state in the vaults' memory, against steps without, in one run.

The driver's own keeper chooses how often copies are made. Both sets of ranks live all the time,
one of them idle.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter

from actors.pool import ActorPool
from actors.session import Session
from disagg_train.bench.alternation import STEPS_PER_RUN, Paired, alternate
from disagg_train.bench.statistics import median_ms
from disagg_train.bench.torchrun import job_plans
from disagg_train.bench.under_ray import RayContestant
from disagg_train.checkpoint.manifest import CheckpointStore, Manifest
from disagg_train.config.job import JobConfig
from disagg_train.driver import loop
from disagg_train.driver.keeping import Keeper, Saved

_COPIES_TO_SETTLE = 4


@dataclass(frozen=True)
class CopyResult:
    """What copies in memory cost the steps.

    A run is as many steps as there are between two copies; storing what was copied in it belongs
    to it.

    Args:
        times: of a step, with copies against without.
        overhead: by which the median ratio is more than one.
        allowed: ``recovery.max_overhead``.
        every_steps: from one copy to the next, as the keeper chose it before the measured runs.
        steps_per_run: of a measured run.
        copies_per_run: mean over the measured runs.
        stall_ms: of a copy: how long the slowest rank stands still; median.
        storing_ms: of a copy: how long sending it takes beside the training, on the slowest
            rank; median.
        busy: part of the time that stall and storing take up; the overhead comes near to it only
            where storing takes cores away from the training.
    """

    times: Paired
    overhead: float
    allowed: float
    every_steps: int
    steps_per_run: int
    copies_per_run: float
    stall_ms: float
    storing_ms: float
    busy: float


def run_copies_on(pool: ActorPool, job: JobConfig, blocks: int) -> CopyResult:
    """Measure on actors that are there.

    Args:
        pool: has actors for two sets of ranks.
        job: has more steps than are needed, and writes no checkpoints on the way.
        blocks: ABBA blocks.

    Raises:
        RankError: a rank died, hung or raised.
        PlanError: the two did not train the same.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        pool.session(job, keeps_copies=True) as keeping,
        pool.session(job) as plain,
    ):
        store = CheckpointStore(folder)
        keeper = Keeper(job, store, _manifest, keeps_copies=True, shares_cores=True)
        ours, other = KeepingContestant(keeping, keeper), RayContestant(plain)
        other.name = "without"
        _settle(ours, other)
        every_steps = _steps_between(keeper.saved)
        steps, before = max(every_steps, STEPS_PER_RUN), len(keeper.saved)
        times = alternate(ours, other, blocks, steps)
        return _result(job, times, every_steps, steps, keeper.saved[before:])


def _manifest(steps_done: int) -> Manifest:
    return Manifest(steps_done, {}, {})


def _settle(ours: "KeepingContestant", other: RayContestant) -> None:
    """Train until the keeper knows what copies take; both sides the same steps."""
    while len(ours.keeper.saved) < _COPIES_TO_SETTLE:
        for contestant in (ours, other):
            contestant.run(STEPS_PER_RUN)


def _steps_between(copies: Sequence[Saved]) -> int:
    """Return how many steps lie between the last two copies."""
    return copies[-1].steps_done - copies[-2].steps_done


def _result(
    job: JobConfig, times: Paired, every_steps: int, steps: int, copies: Sequence[Saved]
) -> CopyResult:
    per_run = len(copies) / len(times.samples_ms[KeepingContestant.name])
    stall_ms = median_ms([copy.stall_s for copy in copies])
    storing_ms = median_ms([copy.busy_s for copy in copies])
    return CopyResult(
        times,
        overhead=times.ratio - 1.0,
        allowed=job.recovery.max_overhead,
        every_steps=every_steps,
        steps_per_run=steps,
        copies_per_run=per_run,
        stall_ms=stall_ms,
        storing_ms=storing_ms,
        busy=per_run * (stall_ms + storing_ms) / (steps * times.other_ms),
    )


class KeepingContestant:
    """A session of actors whose state is kept in memory, as a contestant.

    Args:
        session: ranks under Ray, with vaults.
        keeper: orders the copies.
    """

    name = "with copies"

    def __init__(self, session: Session, keeper: Keeper) -> None:
        self.losses: list[float] = []
        self.keeper = keeper
        self._session, self._plans = session, job_plans(session.job)
        keeper.attach(session.groups)

    def run(self, count: int) -> float:
        """Train the next ``count`` steps and store what was copied; return seconds per step."""
        groups, deadline_s = self._session.groups, self._session.job.deadlines.step_s
        plans = islice(self._plans, count)
        begin_s = perf_counter()
        for _, reports in loop.train(groups, plans, deadline_s, keeper=self.keeper):
            self.losses.append(reports[0].loss_sum)
        self.keeper.finish()
        return (perf_counter() - begin_s) / count
