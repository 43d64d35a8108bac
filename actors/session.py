"""A job set up on actors: from a validated job file to groups that can run steps."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import wait
from pathlib import Path
from typing import Protocol, Self

import ray

from actors.agent import Agents
from actors.cluster import Cluster, LostCapacity, total_resources
from actors.courier import Courier
from actors.diagnosis import diagnose
from actors.fitting import fit
from actors.group import ActorGroup
from actors.hardware import gpu_kinds
from actors.plans import StoredPlans
from actors.rendezvous import RendezvousHost
from actors.resources import capacity, rank_resources
from actors.vaults import Vaults
from disagg_train.config.job import JobConfig
from disagg_train.driver.failure import Failure
from disagg_train.driver.schedules import job_schedules
from disagg_train.driver.signals import deferred_signals
from disagg_train.driver.waiting import await_all
from disagg_train.engine.setup import RankSetup, Rendezvous, StateSource
from disagg_train.metrics.events import event

__all__ = ["LostCapacity", "Session", "on_cluster"]

_GOODBYE_S = 10.0
_END_S = 10.0


class ActorSource(Protocol):
    """Where a session's actors come from, and where they go."""

    agents: Agents
    """Look at the actors' processes from outside, and end them."""

    @property
    def on_cpus(self) -> bool:
        """Whether no rank has a GPU."""

    def start(self, groups: Mapping[str, int], deadline_s: float) -> dict[str, ActorGroup]:
        """Return actors for every group, so many as it has ranks."""

    def restart(
        self, ended: Mapping[str, ActorGroup], groups: Mapping[str, int], deadline_s: float
    ) -> dict[str, ActorGroup]:
        """Return new actors for groups whose old ones are ended."""

    def release(self, groups: Mapping[str, ActorGroup], sound: bool) -> None:
        """Take actors back; they are sound if all of them left their groups."""


class Session:
    """Groups of actors that hold a job's modules; a context manager that lets them go.

    Args:
        job: the job, fitted to what ``actors`` can give.
        actors: where the actors of every group come from.
        note: what was changed about the job to make it fit, for people.
        source: the state that the ranks begin with; none where they begin anew.
        keeps_copies: whether vaults hold copies of the ranks' states.
        logs: folder that takes the output of every rank; None leaves it to Ray.
    """

    def __init__(
        self,
        job: JobConfig,
        actors: ActorSource,
        note: str = "",
        source: StateSource | None = None,
        keeps_copies: bool = False,
        logs: Path | None = None,
    ) -> None:
        self._note, self._logs = note, logs
        self._actors, self._plans = actors, StoredPlans()
        self._vaults = Vaults(job.deadlines.step_s) if keeps_copies else None
        self._said_of_output = False
        self._take(job)
        sizes = {name: group.ranks for name, group in job.groups.items()}
        self._by_name = actors.start(sizes, job.deadlines.setup_s)
        try:
            self._host = RendezvousHost(ray.util.get_node_ip_address())
            self._watch(self._by_name.values())
            self._setup(source)
        except BaseException:
            self.close()
            raise

    def _take(self, job: JobConfig) -> None:
        self.job = job
        self.schedule, self._evaluation = job_schedules(job)

    def take_note(self) -> str:
        """Return what people should know and has not been returned before."""
        note, self._note = self._note, ""
        return note

    @property
    def groups(self) -> list[ActorGroup]:
        """All groups, in the order of the job."""
        return [self._by_name[name] for name in self.job.groups]

    @property
    def on_cpus(self) -> bool:
        """Whether no rank has a GPU, so that ranks share cores with what runs beside them."""
        return self._actors.on_cpus

    @property
    def gpu_kinds(self) -> dict[str, str]:
        """Kind of each group's GPUs; empty where one is not known."""
        return {} if self.on_cpus else gpu_kinds(self.job, total_resources())

    def _watch(self, groups: Iterable[ActorGroup]) -> None:
        self._actors.agents.watch(home for group in groups for home in group.homes)

    def _setup(self, source: StateSource | None) -> None:
        """Set every rank up under a new epoch, with a state if there is one."""
        rendezvous, deadline_s = self._host.next_epoch(), self.job.deadlines.setup_s
        nodes = {home.node_id for group in self.groups for home in group.homes}
        if self._vaults is not None:
            self._vaults.begin(rendezvous.epoch, nodes, source)
        await_all([group.prepare() for group in self.groups], deadline_s, "preparation")
        place, futures = 0, []
        for group in self.groups:
            group.share(self._plans)
            setups = []
            for rank in range(len(group.actors)):
                ops = self.schedule.ops[place], self._evaluation.ops[place]
                log = None if self._logs is None else str(self._logs / f"{group.name}-{rank}.log")
                setups.append(RankSetup(self.job, rendezvous, group.name, rank, *ops, log))
                place += 1
            couriers = self._couriers(group, rendezvous, nodes)
            futures.append(group.setup(setups, source, couriers))
        await_all(futures, deadline_s, "setup")
        self._tell_of(0 if source is None else source.steps_done)
        self._note_lost_output([reason for future in futures for reason in future.result()])

    def _tell_of(self, step: int) -> None:
        for group in self.groups:
            for rank, home in enumerate(group.homes):
                gpus = f", GPU {', '.join(home.gpus)}" if home.gpus else ""
                where = f"node {home.address}, process {home.pid}{gpus}"
                event(f"set up on {where}", step, group.name, rank)

    def _note_lost_output(self, reasons: Sequence[str]) -> None:
        """Say once, for all ranks that it is true of."""
        lost = [reason for reason in reasons if reason]
        if lost and not self._said_of_output:
            self._said_of_output = True
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            said = f"Ray keeps the output of ranks that cannot write it: {lost[0]}{more}"
            self._note = "; ".join(filter(None, (self._note, said)))

    def _couriers(
        self, group: ActorGroup, rendezvous: Rendezvous, nodes: Collection[str]
    ) -> Sequence[Courier] | None:
        if self._vaults is None:
            return None
        num_ranks, deadline_s = self.job.num_ranks, self.job.deadlines.step_s
        return [
            Courier(
                self._vaults.of_node(home.node_id, nodes),
                rendezvous.epoch,
                num_ranks,
                group.name,
                rank,
                deadline_s,
            )
            for rank, home in enumerate(group.homes)
        ]

    @property
    def row_names(self) -> dict[int, str]:
        """Name of every global rank, for pictures."""
        names = [
            f"{group.name} {rank}" for group in self.groups for rank in range(len(group.actors))
        ]
        return dict(enumerate(names))

    def newest_copy(self) -> StateSource | None:
        """Return the newest step of which living vaults hold every rank's state, if any."""
        return self._vaults.newest() if self._vaults is not None else None

    def diagnose(self, error: BaseException, step: int) -> Failure:
        """Find out what every rank is at, and who is to blame for an error.

        Args:
            error: what the run met.
            step: that failed.
        """
        return diagnose(self.groups, self._actors.agents, error, step)

    def renew(self, job: JobConfig, groups: Collection[str], source: StateSource | None) -> None:
        """Make the actors of some groups anew, and set every rank up again.

        The actors of the other groups keep their processes.

        Args:
            job: as it goes on: ``groups`` may have other numbers of ranks than before.
            groups: names of those whose actors are ended, whatever they are at, and made anew.
            source: the state that all ranks begin with.

        Raises:
            LostCapacity: the cluster has no room for a group any more; call again, with a
                smaller one.
            RankError: a rank could not be set up.
        """
        ended = {name: self._by_name[name] for name in groups}
        for name, group in self._by_name.items():
            if name in ended:
                group.kill()
            else:
                group.give_up(f"the groups {sorted(ended)} are made anew")
        self._actors.agents.end([h for group in ended.values() for h in group.homes], _END_S)
        sizes = {name: job.groups[name].ranks for name in groups}
        started = self._actors.restart(ended, sizes, job.recovery.replacement_s)
        self._by_name |= started
        self._take(job)
        self._watch(started.values())
        self._setup(source)

    def close(self) -> None:
        """Make all ranks leave their groups, and let the actors go.

        Ranks that do not answer in time are given back as unsound.
        """
        with deferred_signals():  # who interrupts twice must not leave actors behind
            futures = [group.teardown() for group in self._by_name.values()]
            done, _ = wait(futures, timeout=_GOODBYE_S)
            sound = len(done) == len(futures) and not any(future.exception() for future in done)
            if self._vaults is not None:
                self._vaults.close()
            self._actors.release(self._by_name, sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def on_cluster(
    job: JobConfig,
    source: StateSource | None = None,
    keeps_copies: bool = False,
    logs: Path | None = None,
) -> Session:
    """Set a job up on actors of its own; Ray must be connected.

    Args:
        job: the job; it may be changed to fit the cluster.
        source: the state that it begins with; none where it begins anew.
        keeps_copies: whether vaults hold copies of the ranks' states.
        logs: folder that takes the output of every rank; None leaves it to Ray.

    Raises:
        ClusterError: the cluster cannot hold it.
        RankError: a rank could not build its modules.
    """
    total = total_resources()
    resources, about_device = rank_resources(job, total)
    job, about_size = fit(job, capacity(job, resources, total))
    cluster = Cluster(job, resources)
    note = "; ".join(filter(None, (about_device, about_size, *cluster.notes)))
    try:
        return Session(job, cluster, note, source, keeps_copies, logs)
    except BaseException:
        cluster.close()
        raise
