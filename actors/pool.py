"""Warm actors that serve one job after another: for parity checks and for tests.

Importing Megatron takes seconds per process; a pool pays for it once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray

from actors.agent import Agents
from actors.courier import succeeded
from actors.group import ActorGroup, locate
from actors.session import Session
from actors.worker import start_actor
from disagg_train.config.job import JobConfig
from disagg_train.engine.setup import StateSource
from disagg_train.errors import ClusterError

_GOODBYE_S = 5.0


class ActorPool:
    """A fixed number of rank actors.

    Args:
        num_ranks: actors to start; each takes one CPU of Ray's count.
        environment: variables that their processes start with.
    """

    def __init__(self, num_ranks: int, environment: Mapping[str, str] | None = None) -> None:
        self._environment = dict(environment or {})
        self._actors = [self._start_actor() for _ in range(num_ranks)]
        self._leased: list[Any] = []
        self.agents = Agents()
        self.on_cpus = True

    def _start_actor(self) -> Any:
        return start_actor(environment=self._environment)

    def __len__(self) -> int:
        return len(self._actors)

    def session(
        self,
        job: JobConfig,
        source: StateSource | None = None,
        keeps_copies: bool = False,
        logs: Path | None = None,
    ) -> Session:
        """Set a job up on the pool; closing the session gives the actors back.

        Args:
            job: the job.
            source: the state that it begins with.
            keeps_copies: whether vaults hold copies of the ranks' states.
            logs: folder that takes the output of every rank; None leaves it to Ray.
        """
        return Session(job, self, "", source, keeps_copies, logs)

    def start(self, groups: Mapping[str, int], deadline_s: float) -> dict[str, ActorGroup]:
        """Lease actors for every group.

        Raises:
            ClusterError: the pool has too few.
        """
        wanted = sum(groups.values())
        free = [actor for actor in self._actors if actor not in self._leased]
        if wanted > len(free):
            raise ClusterError(f"the pool has {len(free)} ranks, the job needs {wanted}")
        leased = {}
        for name, ranks in groups.items():
            actors, free = free[:ranks], free[ranks:]
            leased[name] = ActorGroup(name, actors, locate(name, actors, deadline_s))
        self._leased += [actor for group in leased.values() for actor in group.actors]
        return leased

    def restart(
        self, ended: Mapping[str, ActorGroup], groups: Mapping[str, int], deadline_s: float
    ) -> dict[str, ActorGroup]:
        """Put new actors into the places of ended ones, and lease some for these groups."""
        for group in ended.values():
            for actor in group.actors:
                self._replace(actor)
        return self.start(groups, deadline_s)

    def release(self, groups: Mapping[str, ActorGroup], sound: bool) -> None:
        """Keep actors warm; replace those that died, or cannot leave their groups."""
        for group in groups.values():
            if not sound:
                self._mend(group)
            self._leased = [actor for actor in self._leased if actor not in group.actors]

    def _mend(self, group: ActorGroup) -> None:
        leaving = [actor.teardown.remote() for actor in group.actors]
        ray.wait(leaving, num_returns=len(leaving), timeout=_GOODBYE_S)
        for left, actor, home in zip(leaving, group.actors, group.homes, strict=True):
            if not succeeded(left):
                ray.kill(actor)
                self.agents.end([home], _GOODBYE_S)
                self._replace(actor)

    def _replace(self, actor: Any) -> None:
        """Put a new actor into the place of an ended one."""
        if actor in self._actors:
            self._actors[self._actors.index(actor)] = self._start_actor()
        self._leased = [leased for leased in self._leased if leased != actor]

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        self.agents.close()
