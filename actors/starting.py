"""Actors on their way, on a cluster that may lose nodes meanwhile."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.agent import Home
from actors.group import ActorGroup
from actors.numbering import rank_order

_POLL_S = 0.1


class Starting:
    """Actors on their way, each started again where it dies with its node.

    Args:
        starts: what starts each.
    """

    def __init__(self, starts: Sequence[Callable[[], Any]]) -> None:
        self._starts = starts
        self.actors = [start() for start in starts]
        self._asked = [actor.home.remote() for actor in self.actors]
        self._homes: list[Home | None] = [None] * len(starts)

    @property
    def homes(self) -> list[Home]:
        """Where those are that run."""
        return [home for home in self._homes if home is not None]

    @property
    def num_running(self) -> int:
        """How many run."""
        return len(self.homes)

    def wait(self, until_s: float) -> bool:
        """Return whether all run before a point in time."""
        while self.num_running < len(self.actors) and time.monotonic() < until_s:
            missing = [i for i, home in enumerate(self._homes) if home is None]
            calls = [self._asked[i] for i in missing]
            ray.wait(calls, num_returns=len(calls), timeout=_POLL_S)
            for i in missing:
                self._look(i)
        return self.num_running == len(self.actors)

    def _look(self, i: int) -> None:
        try:
            self._homes[i] = ray.get(self._asked[i], timeout=0)
        except GetTimeoutError:
            return
        except RayError:
            time.sleep(_POLL_S)
            self.actors[i] = self._starts[i]()
            self._asked[i] = self.actors[i].home.remote()

    def kill(self) -> None:
        """End those that run, and those that wait."""
        for actor in self.actors:
            ray.kill(actor)


def numbered(
    name: str, actors: Sequence[Any], homes: Sequence[Home], before: Sequence[Home] = ()
) -> ActorGroup:
    """Return actors as a group, in the order of their nodes and GPUs.

    Args:
        name: of the group.
        actors: in any order.
        homes: where each is.
        before: where the group's ranks were when it last ran.
    """
    order = rank_order(homes, before)
    return ActorGroup(name, [actors[i] for i in order], [homes[i] for i in order])
