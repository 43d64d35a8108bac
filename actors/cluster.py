"""The cluster: start or join Ray, place groups, and say plainly what does not fit."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from math import floor, lcm
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.agent import Agents
from actors.group import ActorGroup, locate
from actors.pod_nodes import selector
from actors.resources import ByGroup, is_counted
from actors.scratch import ScratchFolder
from actors.starting import Starting, numbered
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ClusterError

_POLL_S, _PLACED_POLL_S = 0.1, 1.0
_GOODBYE_S = 5.0


@contextlib.contextmanager
def _our_sigterm() -> Iterator[None]:
    """Keep this process's own SIGTERM handler: Ray's would end it without any clean-up."""
    ours = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, ours)


class RayConnection:
    """A connection to Ray; closing it stops a Ray that was started for it, and no other.

    Args:
        address: of a running cluster, ``auto`` for the one on this machine; None starts a
            local Ray unless this process is connected already.
        num_cpus: ranks that a local Ray must hold; on a laptop they share its cores.
    """

    def __init__(self, address: str | None, num_cpus: int) -> None:
        self._folder: ScratchFolder | None = None
        if address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: ranks are no helpers
        if ray.is_initialized():
            return
        with _our_sigterm():
            if address is not None:
                ray.init(address=address, log_to_driver=False)
            else:
                self._start_local(num_cpus)

    def _start_local(self, num_cpus: int) -> None:
        self._folder = ScratchFolder()
        ray.init(
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(self._folder.path),
            logging_level="ERROR",
        )

    def close(self) -> None:
        """Stop the local Ray, if one was started here, and remove its files."""
        if self._folder is not None:
            ray.shutdown()
            self._folder.remove()
            self._folder = None


def fit(job: JobConfig, capacity: int) -> tuple[JobConfig, str]:
    """Return the job as it can run on ``capacity`` ranks, and what was changed about it.

    Raises:
        ClusterError: it does not fit, and may not fall back or cannot.
    """
    if job.num_ranks <= capacity:
        return job, ""
    wanted = ", ".join(f"{name}: {group.ranks}" for name, group in job.groups.items())
    missing = (
        f"the groups need {job.num_ranks} ranks ({wanted}) and the cluster has room for {capacity}"
    )
    if job.fallback is None:
        raise ClusterError(
            f"{missing}; {job.num_ranks - capacity} are missing. Add nodes, use smaller groups, "
            f"or allow `fallback: colocated`"
        )
    unit = lcm(*(_least_ranks(module.parallel) for module in job.modules.values()))
    ranks = capacity // unit * unit
    if ranks == 0:
        raise ClusterError(f"{missing}; colocated, the modules still need {unit} ranks")
    return _colocated(job, ranks), (
        f"{missing}, so all modules run colocated on group {job.language.group!r} with "
        f"{ranks} ranks and dp shrunk to fit; the training is the same"
    )


def _least_ranks(parallel: ParallelConfig) -> int:
    """Return the fewest ranks that a module's degrees leave room for, dp apart."""
    lanes = lcm(parallel.cp, parallel.ep)
    return parallel.tp * parallel.pp * lanes


def _colocated(job: JobConfig, ranks: int) -> JobConfig:
    home = job.language.group
    modules = {}
    for name, module in job.modules.items():
        parallel = module.parallel
        dp = ranks // (parallel.tp * parallel.cp * parallel.pp)
        changes = {"group": home, "parallel": parallel.model_copy(update={"dp": dp})}
        modules[name] = module.model_copy(update=changes)
    groups = {home: job.groups[home].model_copy(update={"ranks": ranks})}
    return JobConfig.model_validate(
        job.model_copy(update={"groups": groups, "modules": modules, "plan": None}).model_dump()
    )


class LostCapacity(ClusterError):  # noqa: N818 - not a mistake, but news
    """The cluster has no room any more for all ranks of a group that is to be made anew.

    Args:
        group: the group.
        ranks: how many of its ranks can be placed now.
        wanted: how many it has.
        waited_s: how long room was waited for.
    """

    def __init__(self, group: str, ranks: int, wanted: int, waited_s: float) -> None:
        super().__init__(
            f"group {group!r} has room for {ranks} of its {wanted} ranks, and no more came in "
            f"{waited_s:g} s; add nodes, or raise recovery.replacement_s"
        )
        self.group, self.ranks, self.wanted, self.waited_s = group, ranks, wanted, waited_s

    def __reduce__(self) -> tuple[type["LostCapacity"], tuple[str, int, int, float]]:
        """Pickle by the constructor's arguments."""
        return type(self), (self.group, self.ranks, self.wanted, self.waited_s)


class Cluster:
    """The placement groups of one job, and the actors in them.

    Args:
        job: the job, already fitted to the cluster.
        resources: what a rank of each group takes.

    Raises:
        ClusterError: a group is not placed before the deadline.
    """

    def __init__(self, job: JobConfig, resources: ByGroup) -> None:
        self._placed: dict[str, PlacementGroup] = {}
        self._resources, self._setup_s = resources, job.deadlines.setup_s
        self.agents = Agents()
        deadline_s = time.monotonic() + job.deadlines.placement_s
        try:
            for name, group in job.groups.items():
                self._place(name, group.ranks)
            for name, placed in self._placed.items():
                self._await(name, placed, deadline_s, job.deadlines.placement_s)
        except BaseException:
            self._give_back()
            raise

    @property
    def on_cpus(self) -> bool:
        """Whether no rank has a GPU."""
        return not any(takes.gpus for takes in self._resources.values())

    def _place(self, name: str, ranks: int) -> None:
        bundle = self._resources[name].bundle()
        label = selector(name, ranks, bundle, ray.nodes())
        self._placed[name] = placement_group(
            [bundle] * ranks,
            strategy="PACK",
            bundle_label_selector=[label] * ranks if label else None,
        )

    @staticmethod
    def _await(name: str, placed: PlacementGroup, until_s: float, deadline_s: float) -> None:
        ready = placed.ready()
        while not ray.wait([ready], timeout=_POLL_S)[0]:
            if time.monotonic() > until_s:
                raise ClusterError(
                    f"group {name!r} was not placed in {deadline_s:g} s: it needs "
                    f"{placed.bundle_specs}, the cluster has {_free()} free; start nodes or "
                    f"shrink the group"
                )

    def start(self, groups: Mapping[str, int], deadline_s: float) -> dict[str, ActorGroup]:
        """Start every group's actors and number them by node and GPU.

        Ranks that share a tp group are neighbours, so they come to share a node.
        """
        return {name: self._start(name, ranks, deadline_s) for name, ranks in groups.items()}

    def _start(self, name: str, ranks: int, deadline_s: float) -> ActorGroup:
        actors = [self._start_actor(name, bundle) for bundle in range(ranks)]
        return numbered(name, actors, locate(name, actors, deadline_s))

    def _start_actor(self, name: str, bundle: int) -> Any:
        takes = self._resources[name]
        place = PlacementGroupSchedulingStrategy(self._placed[name], bundle)
        return start_actor(takes.gpus, takes.cpus, place, dict(takes.environment))

    def restart(
        self, ended: Mapping[str, ActorGroup], groups: Mapping[str, int], deadline_s: float
    ) -> dict[str, ActorGroup]:
        """Start the actors of groups anew, whose old ones are ended.

        A group of the same size goes into the bundles that it has: Ray places those of a lost
        node on another one, once there is room. A group of another size is placed anew.

        Args:
            ended: what the groups were.
            groups: how many ranks they are to have.
            deadline_s: until there is room for all of them.

        Raises:
            LostCapacity: there is no room for a group.
        """
        for name, ranks in groups.items():
            placed = self._placed.get(name)
            if placed is not None and placed.bundle_count != ranks:
                remove_placement_group(self._placed.pop(name))
            if name not in self._placed:
                self._place(name, ranks)
        begin_s = time.monotonic()
        starting = {
            name: Starting([partial(self._start_actor, name, bundle) for bundle in range(ranks)])
            for name, ranks in groups.items()
        }
        try:
            return {
                name: self._located(name, starting[name], begin_s, deadline_s) for name in groups
            }
        except BaseException:
            for each in starting.values():
                each.kill()
            raise

    def _located(
        self, name: str, starting: Starting, begin_s: float, deadline_s: float
    ) -> ActorGroup:
        until_s = begin_s + deadline_s
        while not starting.wait(until_s):
            if not self._is_placed(name):
                raise self._lost(name, starting, deadline_s)
            if time.monotonic() > begin_s + deadline_s + self._setup_s:
                raise ClusterError(
                    f"the actors of group {name!r} did not start in {self._setup_s:g} s; look at "
                    f"Ray's logs, or raise deadlines.setup_s"
                )
            until_s = time.monotonic() + _PLACED_POLL_S
        return numbered(name, starting.actors, starting.homes)

    def _is_placed(self, name: str) -> bool:
        """Return whether all bundles of a group are on nodes that live, as far as Ray knows."""
        return bool(placement_group_table(self._placed[name])["state"] == "CREATED")

    def _lost(self, name: str, starting: Starting, deadline_s: float) -> LostCapacity:
        found, wanted = starting.num_running, len(starting.actors)
        room = min(wanted - 1, found + self._room(name))
        remove_placement_group(self._placed.pop(name))
        return LostCapacity(name, room, wanted, deadline_s)

    def _room(self, name: str) -> int:
        """Return how many ranks of a group fit in what is free."""
        free, takes = _free(), self._resources[name].bundle()
        return min(floor(free.get(kind, 0.0) / amount) for kind, amount in takes.items())

    def release(self, groups: Mapping[str, ActorGroup], sound: bool) -> None:
        """End all actors, and give the placement groups back."""
        for group in groups.values():
            group.kill()
        if not sound:
            homes = [home for group in groups.values() for home in group.homes]
            self.agents.end(homes, _GOODBYE_S)
        self._give_back()

    def _give_back(self) -> None:
        for placed in self._placed.values():
            remove_placement_group(placed)
        self._placed.clear()
        self.agents.close()

    def close(self) -> None:
        """Give back what no session has taken."""
        self._give_back()


def total_resources() -> dict[str, float]:
    """Return what the cluster has, used or free."""
    return {k: v for k, v in ray.cluster_resources().items() if is_counted(k)}


def _free() -> dict[str, float]:
    return {k: v for k, v in ray.available_resources().items() if is_counted(k)}
