"""Ranks under Ray actors, handed their steps by the driver, as a contestant."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from time import perf_counter

from actors.cluster import RayConnection
from actors.pool import ActorPool
from actors.session import Session
from disagg_train.bench.dead_time import dead_time_fraction
from disagg_train.bench.torchrun import job_plans
from disagg_train.driver import loop
from disagg_train.driver.loop import Reports


@contextmanager
def started_pool(num_ranks: int) -> Iterator[ActorPool]:
    """Start actors in a local Ray, and end both."""
    with ExitStack() as stack:
        stack.callback(RayConnection(None, num_ranks).close)
        pool = ActorPool(num_ranks)
        stack.callback(pool.close)
        yield pool


class RayContestant:
    """A session of actors, as a contestant.

    Args:
        session: ranks under Ray.
    """

    name = "ray"

    def __init__(self, session: Session) -> None:
        self.losses: list[float] = []
        self._session, self._plans = session, job_plans(session.job)
        self._traces: list[list[Reports]] = []

    def run(self, count: int) -> float:
        """Train the next ``count`` steps; return seconds per step."""
        plans = list(islice(self._plans, count))
        begin_s = perf_counter()
        deadline_s = self._session.job.deadlines.step_s
        reports = [found for _, found in loop.train(self._session.groups, plans, deadline_s)]
        elapsed_s = perf_counter() - begin_s
        self._traces.append(reports)
        self.losses += [step[0].loss_sum for step in reports]
        return elapsed_s / count

    @property
    def dead_time_fraction(self) -> float:
        """Time between ops and steps over all time, of the worst rank, after the first run."""
        return dead_time_fraction(self._traces[1:])
