"""The cluster: start or join Ray, place groups, and say plainly what does not fit."""

import contextlib
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from math import lcm
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.group import ActorGroup, locate
from actors.resources import ByGroup
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.config.modules import ParallelConfig
from disagg_train.errors import ClusterError

_POLL_S = 0.1


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
        self._folder: Path | None = None
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
        self._folder = Path(tempfile.mkdtemp(prefix="disagg-train-ray-"))
        ray.init(
            num_cpus=max(num_cpus, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(self._folder),
            logging_level="ERROR",
        )

    def close(self) -> None:
        """Stop the local Ray, if one was started here, and remove its files."""
        if self._folder is not None:
            ray.shutdown()
            shutil.rmtree(self._folder, ignore_errors=True)
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
        job.model_copy(update={"groups": groups, "modules": modules}).model_dump()
    )


class Cluster:
    """The placement groups of one job.

    Args:
        job: the job, already fitted to the cluster.
        resources: what a rank of each group takes.

    Raises:
        ClusterError: a group is not placed before the deadline.
    """

    def __init__(self, job: JobConfig, resources: ByGroup) -> None:
        self._placed: dict[str, PlacementGroup] = {}
        self._resources = resources
        deadline_s = time.monotonic() + job.deadlines.placement_s
        try:
            for name, group in job.groups.items():
                bundles = [resources[name].bundle()] * group.ranks
                self._placed[name] = placement_group(bundles, strategy="PACK")
            for name, placed in self._placed.items():
                self._await(name, placed, deadline_s, job.deadlines.placement_s)
        except BaseException:
            self.release()
            raise

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
        actors, takes = [], self._resources[name]
        for bundle in range(ranks):
            place = PlacementGroupSchedulingStrategy(self._placed[name], bundle)
            environment = dict(takes.environment)
            actors.append(start_actor(takes.gpus, takes.cpus, place, environment))
        addresses = locate(name, actors, deadline_s)
        gpus = ray.get([actor.gpu_ids.remote() for actor in actors], timeout=deadline_s)
        order = sorted(range(ranks), key=lambda i: (addresses[i], gpus[i]))
        return ActorGroup(name, [actors[i] for i in order], [addresses[i] for i in order])

    def release(self) -> None:
        """Give the placement groups back."""
        for placed in self._placed.values():
            remove_placement_group(placed)
        self._placed.clear()


def total_resources() -> dict[str, float]:
    """Return what the cluster has, used or free."""
    return {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}


def _free() -> dict[str, float]:
    return {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
