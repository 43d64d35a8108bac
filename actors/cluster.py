"""The cluster: start or join Ray, place groups, and say plainly what does not fit."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import ray
from ray._private.state import available_resources_per_node
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.agent import Agents
from actors.bundles import Bundles, bundles_of
from actors.group import ActorGroup, locate
from actors.nodes import Node, live_nodes
from actors.quiet import hush_ray
from actors.resources import ByGroup, is_counted
from actors.scratch import ScratchFolder
from actors.starting import Starting, numbered
from actors.unplaced import unplaced
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import tp_ranks
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
        is_passing: leave the cluster that ``address`` names once nothing of this process uses
            it; else this process stays connected.

    Raises:
        ClusterError: there is no cluster at the address.
    """

    _open: ClassVar[set["RayConnection"]] = set()
    _is_passing: ClassVar[bool] = False

    def __init__(self, address: str | None, num_cpus: int, is_passing: bool = False) -> None:
        self._folder: ScratchFolder | None = None
        self._connect(address, num_cpus, is_passing)
        self._open.add(self)

    def _connect(self, address: str | None, num_cpus: int, is_passing: bool) -> None:
        if address is None:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: ranks are no helpers
        hush_ray()
        if ray.is_initialized():
            return
        with _our_sigterm():
            if address is not None:
                _join(address)
            else:
                self._start_local(num_cpus)
        RayConnection._is_passing = is_passing

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
        """Stop a Ray that was started here and remove its files; leave one that is passed by."""
        self._open.discard(self)
        if self._folder is not None:
            ray.shutdown()
            self._folder.remove()
            self._folder = None
        elif RayConnection._is_passing and not self._open:
            ray.shutdown()
            RayConnection._is_passing = False


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster at {address!r}: {error}; name its address, as HOST:PORT"
        ) from None


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


@dataclass(frozen=True)
class _Placed:
    """A group's bundles, and Ray's name for them."""

    bundles: Bundles
    group: PlacementGroup


class Cluster:
    """The placement groups of one job, and the actors in them.

    Args:
        job: the job, already fitted to the cluster.
        resources: what a rank of each group takes.

    Raises:
        ClusterError: a group is not placed before the deadline.
    """

    def __init__(self, job: JobConfig, resources: ByGroup) -> None:
        self._placed: dict[str, _Placed] = {}
        self._job, self._resources = job, resources
        self.agents = Agents()
        deadline_s = time.monotonic() + job.deadlines.placement_s
        try:
            for name, group in job.groups.items():
                self._place(name, group.ranks)
            for placed in self._placed.values():
                self._await(placed, deadline_s, job.deadlines.placement_s)
        except BaseException:
            self._give_back()
            raise

    @property
    def on_cpus(self) -> bool:
        """Whether no rank has a GPU."""
        return not any(takes.gpus for takes in self._resources.values())

    @property
    def notes(self) -> list[str]:
        """What people should know of where groups are."""
        return [note for placed in self._placed.values() if (note := placed.bundles.note)]

    def _bundles(self, name: str, ranks: int, nodes: Sequence[Node]) -> Bundles:
        about, takes = self._job.groups[name], self._resources[name]
        return bundles_of(name, about, ranks, tp_ranks(self._job.modules, name), takes, nodes)

    def _place(self, name: str, ranks: int) -> None:
        bundles = self._bundles(name, ranks, _nodes())
        selector = dict(bundles.selector)
        group = placement_group(
            [dict(bundles.resources)] * bundles.count,
            strategy=bundles.strategy,
            bundle_label_selector=[selector] * bundles.count if selector else None,
        )
        self._placed[name] = _Placed(bundles, group)

    @staticmethod
    def _await(placed: _Placed, until_s: float, deadline_s: float) -> None:
        ready = placed.group.ready()
        while not ray.wait([ready], timeout=_POLL_S)[0]:
            if time.monotonic() > until_s:
                raise ClusterError(unplaced(placed.bundles, _nodes(), deadline_s))

    def start(self, groups: Mapping[str, int], deadline_s: float) -> dict[str, ActorGroup]:
        """Start every group's actors and number them by node and GPU.

        Ranks that share a tp group are neighbours, and so on one node.
        """
        started = {
            name: [self._start_actor(name, number) for number in range(ranks)]
            for name, ranks in groups.items()
        }
        return {
            name: numbered(name, actors, locate(name, actors, deadline_s))
            for name, actors in started.items()
        }

    def _start_actor(self, name: str, number: int) -> Any:
        takes, placed = self._resources[name], self._placed[name]
        place = PlacementGroupSchedulingStrategy(placed.group, placed.bundles.of_actor(number))
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
            if placed is not None and placed.bundles.ranks != ranks:
                remove_placement_group(self._placed.pop(name).group)
            if name not in self._placed:
                self._place(name, ranks)
        begin_s = time.monotonic()
        starting = {
            name: Starting([partial(self._start_actor, name, number) for number in range(ranks)])
            for name, ranks in groups.items()
        }
        try:
            for name, each in starting.items():
                self._await_all(name, each, begin_s, deadline_s)
        except BaseException:
            for each in starting.values():
                each.kill()
            raise
        return {
            name: numbered(name, each.actors, each.homes, ended[name].homes)
            for name, each in starting.items()
        }

    def _await_all(self, name: str, starting: Starting, begin_s: float, deadline_s: float) -> None:
        until_s, setup_s = begin_s + deadline_s, self._job.deadlines.setup_s
        while not starting.wait(until_s):
            if not self._is_placed(name):
                raise self._lost(name, starting, deadline_s)
            if time.monotonic() > begin_s + deadline_s + setup_s:
                raise ClusterError(
                    f"the actors of group {name!r} did not start in {setup_s:g} s; look at "
                    f"Ray's logs, or raise deadlines.setup_s"
                )
            until_s = time.monotonic() + _PLACED_POLL_S

    def _is_placed(self, name: str) -> bool:
        """Return whether all bundles of a group are on nodes that live, as far as Ray knows."""
        return bool(placement_group_table(self._placed[name].group)["state"] == "CREATED")

    def _lost(self, name: str, starting: Starting, deadline_s: float) -> LostCapacity:
        found, wanted = starting.num_running, len(starting.actors)
        room = min(wanted - 1, found + self._room(name))
        remove_placement_group(self._placed.pop(name).group)
        return LostCapacity(name, room, wanted, deadline_s)

    def _room(self, name: str) -> int:
        """Return how many ranks of a group fit in what is free, tp groups whole."""
        nodes = _nodes()
        bundles = self._bundles(name, self._placed[name].bundles.ranks, nodes)
        return bundles.num_on(nodes) * bundles.ranks_per_bundle

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
            remove_placement_group(placed.group)
        self._placed.clear()
        self.agents.close()

    def close(self) -> None:
        """Give back what no session has taken."""
        self._give_back()


def total_resources() -> dict[str, float]:
    """Return what the cluster has, used or free."""
    return {k: v for k, v in ray.cluster_resources().items() if is_counted(k)}


def _nodes() -> list[Node]:
    return live_nodes(ray.nodes(), available_resources_per_node())
