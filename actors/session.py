"""A job set up on actors: from a validated job file to groups that can run steps."""

from collections.abc import Callable, Mapping
from concurrent.futures import wait
from typing import Self

import ray

from actors.cluster import Cluster, fit, total_resources
from actors.group import ActorGroup
from actors.rendezvous import RendezvousHost
from actors.resources import capacity, rank_resources
from disagg_train.config.job import JobConfig
from disagg_train.driver.plans import job_schedules
from disagg_train.driver.waiting import await_all
from disagg_train.engine.setup import RankSetup

_GOODBYE_S = 10.0

StartActors = Callable[[Mapping[str, int], float], dict[str, ActorGroup]]


class Session:
    """Groups of actors that hold a job's modules; a context manager that lets them go.

    Args:
        job: the job, fitted to what ``start`` can give.
        start: makes or leases the actors of every group.
        release: takes them back; called with whether they are still sound.
        note: what was changed about the job to make it fit, for people.
    """

    def __init__(
        self,
        job: JobConfig,
        start: StartActors,
        release: Callable[[Mapping[str, ActorGroup], bool], None],
        note: str = "",
    ) -> None:
        self.job, self.note = job, note
        self._release = release
        self.schedule, self._evaluation = job_schedules(job)
        sizes = {name: group.ranks for name, group in job.groups.items()}
        self._by_name = start(sizes, job.deadlines.setup_s)
        self.groups = list(self._by_name.values())
        try:
            self._setup()
        except BaseException:
            self.close()
            raise

    def _setup(self) -> None:
        self._host = RendezvousHost(ray.util.get_node_ip_address())
        rendezvous = self._host.next_epoch()
        place, futures = 0, []
        for group in self.groups:
            setups = []
            for rank in range(len(group.actors)):
                ops = self.schedule.ops[place], self._evaluation.ops[place]
                setups.append(RankSetup(self.job, rendezvous, group.name, rank, *ops))
                place += 1
            futures.append(group.setup(setups))
        await_all(futures, self.job.deadlines.setup_s, "setup")

    @property
    def row_names(self) -> dict[int, str]:
        """Name of every global rank, for pictures."""
        names = [
            f"{group.name} {rank}" for group in self.groups for rank in range(len(group.actors))
        ]
        return dict(enumerate(names))

    def close(self) -> None:
        """Make all ranks leave their groups, and let the actors go.

        Ranks that do not answer in time are given back as unsound.
        """
        futures = [group.teardown() for group in self.groups]
        done, _ = wait(futures, timeout=_GOODBYE_S)
        sound = len(done) == len(futures) and not any(future.exception() for future in done)
        self._release(self._by_name, sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def on_cluster(job: JobConfig) -> Session:
    """Set a job up on actors of its own; Ray must be connected.

    Raises:
        ClusterError: the cluster cannot hold it.
        RankError: a rank could not build its modules.
    """
    total = total_resources()
    resources, about_device = rank_resources(job, total)
    job, about_size = fit(job, capacity(job, resources, total))
    note = "; ".join(filter(None, (about_device, about_size)))
    cluster = Cluster(job, resources)

    def release(groups: Mapping[str, ActorGroup], sound: bool) -> None:
        del sound
        for group in groups.values():
            group.kill()
        cluster.release()

    try:
        return Session(job, cluster.start, release, note)
    except BaseException:
        cluster.release()
        raise
