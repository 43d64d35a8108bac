"""Actors of the pool that are set up again and again, as after a failure, and made to fail.

Faults run inside the actors. They stop a rank on the thread that runs its steps, so its
process lives and still answers health calls, as a rank does that hangs in a kernel.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.group import ActorGroup, results
from actors.pool import ActorPool
from actors.rendezvous import RendezvousHost
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.data.index import checked_sizes
from disagg_train.data.sampler import batches
from disagg_train.data.source import open_source
from disagg_train.driver import loop, waiting
from disagg_train.driver.plans import training_plans
from disagg_train.driver.schedules import job_schedules
from disagg_train.engine.setup import RankSetup
from disagg_train.metrics.records import StepRecord
from disagg_train.planner.step_plan import StepPlan
from disagg_train.schedule.ops import OpKind

_WAIT_S, _POLL_S = 60.0, 0.02


def plans_of(job: JobConfig) -> list[StepPlan]:
    """Return the plans of all steps of a job."""
    sizes = checked_sizes(open_source(job), job, "train")
    return list(training_plans(job, batches(sizes, job.seed, job.train.global_batch)))


class Crew:
    """The groups of one job on actors that stay, with one store for all their epochs.

    Args:
        pool: whose actors these are; sound ones stay as they are.
        job: sizes of the groups.
    """

    def __init__(self, pool: ActorPool, job: JobConfig) -> None:
        self._pool = pool
        self._host = RendezvousHost(ray.util.get_node_ip_address())
        sizes = {name: group.ranks for name, group in job.groups.items()}
        self.by_name: Mapping[str, ActorGroup] = pool.start(sizes, job.deadlines.setup_s)
        self.groups = list(self.by_name.values())

    @property
    def actors(self) -> list[Any]:
        """All actors by global rank."""
        return [actor for group in self.groups for actor in group.actors]

    def process_ids(self) -> list[int]:
        """Return the process of every global rank."""
        homes = ray.get([actor.home.remote() for actor in self.actors], timeout=_WAIT_S)
        return [home.pid for home in homes]

    def replace(self, group: str, rank: int) -> None:
        """Put a new actor in the place of a dead one."""
        actors, known = self.by_name[group].actors, self._pool._actors
        at, actors[rank] = known.index(actors[rank]), start_actor()
        known[at] = actors[rank]
        self._pool._leased.append(actors[rank])

    def set_up(self, job: JobConfig) -> None:
        """Build every rank under the next epoch; raises the culprit's error."""
        futures = [group.setup(setups) for group, setups in self._setups(job)]
        waiting.await_all(futures, job.deadlines.setup_s, "setup")

    def errors_of_set_up(self, job: JobConfig, deadline_s: float) -> dict[str, BaseException]:
        """Build every rank under the next epoch; return each failed group's error."""
        started = [(group.name, group.setup(setups)) for group, setups in self._setups(job)]
        found = {name: future.exception(timeout=deadline_s) for name, future in started}
        return {name: error for name, error in found.items() if error is not None}

    def _setups(self, job: JobConfig) -> list[tuple[ActorGroup, Sequence[RankSetup]]]:
        rendezvous, (training, evaluation) = self._host.next_epoch(), job_schedules(job)
        place, found = 0, []
        for group in self.groups:
            setups = []
            for rank in range(len(group.actors)):
                ops = training.ops[place], evaluation.ops[place]
                setups.append(RankSetup(job, rendezvous, group.name, rank, *ops))
                place += 1
            found.append((group, setups))
        return found

    def train(self, job: JobConfig) -> list[StepRecord]:
        """Run all steps of the job."""
        plans, deadline_s = plans_of(job), job.deadlines.step_s
        return [record for record, _ in loop.train(self.groups, plans, deadline_s)]

    def close(self) -> None:
        """Give the actors back; what does not answer is replaced."""
        for group in self.groups:
            try:
                results(group.teardown(), _WAIT_S, group.name, "teardown")
                sound = True
            except Exception:
                sound = False
            self._pool.release({group.name: group}, sound)


class Fault:
    """A rank that stops at one of its ops until it is let go.

    Args:
        folder: for the two files by which the rank and the test tell each other.
    """

    def __init__(self, folder: Path) -> None:
        self._reached, self._go = folder / "reached", folder / "go"

    def at(self, actor: Any, op: str) -> None:
        """Stop the rank before ``op`` of its next step; it is set up already."""
        calls = actor.__ray_call__.remote(_stop_at, op, self._reached, self._go)
        ray.get(calls, timeout=_WAIT_S)

    def now(self, actor: Any) -> None:
        """Stop the rank's thread at once, whatever it was to do next."""
        actor.__ray_call__.remote(_stop, self._reached, self._go)

    def wait(self) -> None:
        """Return once the rank stands still."""
        wait_until(self._reached.exists, "the rank did not come to its fault")

    def let_go(self) -> None:
        """Let the rank go on."""
        self._go.touch()


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    """Poll until something holds; fail at a deadline."""
    until_s = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < until_s, otherwise
        time.sleep(_POLL_S)


def _stop_at(actor: Any, op: str, reached: Path, go: Path) -> None:
    executor = actor._rank._executor
    kind = OpKind(op.split()[0])
    do = executor._do[kind]

    def stop_then_do(current: object) -> None:
        if str(current) == op:
            _stop(actor, reached, go)
        do(current)

    executor._do[kind] = stop_then_do


def _stop(actor: Any, reached: Path, go: Path) -> None:
    del actor
    reached.touch()
    wait_until(go.exists, "the fault was never let go")
