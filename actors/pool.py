"""Warm actors that serve one job after another: for parity checks and for tests.

Importing Megatron takes seconds per process; a pool pays for it once.
"""

from collections.abc import Mapping

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.group import ActorGroup, locate
from actors.session import Session
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.errors import ClusterError

_GOODBYE_S = 5.0


class ActorPool:
    """A fixed number of rank actors.

    Args:
        num_ranks: actors to start; each takes one CPU of Ray's count.
    """

    def __init__(self, num_ranks: int) -> None:
        self._actors = [start_actor() for _ in range(num_ranks)]

    def __len__(self) -> int:
        return len(self._actors)

    def session(self, job: JobConfig) -> Session:
        """Set a job up on the pool; closing the session gives the actors back."""
        return Session(job, self._lease, self._give_back)

    def _lease(self, groups: Mapping[str, int], deadline_s: float) -> dict[str, ActorGroup]:
        wanted = sum(groups.values())
        if wanted > len(self._actors):
            raise ClusterError(f"the pool has {len(self._actors)} ranks, the job needs {wanted}")
        free = iter(self._actors)
        leased = {}
        for name, ranks in groups.items():
            actors = [next(free) for _ in range(ranks)]
            leased[name] = ActorGroup(name, actors, locate(name, actors, deadline_s))
        return leased

    def _give_back(self, groups: Mapping[str, ActorGroup], sound: bool) -> None:
        """Keep actors warm; replace those that died, or cannot leave their groups."""
        if sound:
            return
        leaving = {actor.teardown.remote(): actor for g in groups.values() for actor in g.actors}
        ray.wait(list(leaving), num_returns=len(leaving), timeout=_GOODBYE_S)
        for left, actor in leaving.items():
            if not _succeeded(left):
                ray.kill(actor)
                self._actors[self._actors.index(actor)] = start_actor()

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()


def _succeeded(call: ray.ObjectRef) -> bool:
    try:
        ray.get(call, timeout=0)
    except (GetTimeoutError, RayError):
        return False
    return True
