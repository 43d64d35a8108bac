"""What became of every rank: all are asked, and who gives no answer is looked at from outside."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

from actors.agent import Agents
from actors.blame import Known, culprits, error_of
from actors.failure import death_of
from actors.group import ActorGroup
from disagg_train.driver.failure import Failure

_ANSWER_S = 2.5
_QUIET_S, _POLL_S = 5.0, 0.25


def diagnose(
    groups: Sequence[ActorGroup], agents: Agents, error: BaseException, step: int
) -> Failure:
    """Return what every rank is at, and which groups have to be made anew.

    Args:
        groups: all groups of the job.
        agents: look at ranks that do not answer.
        error: what the run met.
        step: that failed.
    """
    ranks = _Ranks(groups, agents)
    ranks.ask_until_settled()
    blamed = culprits(ranks.known)
    failed = {rank.group for rank in blamed}
    names = tuple(group.name for group in groups if group.name in failed or not failed)
    conditions = tuple(rank.condition for rank in ranks.known)
    return Failure(error_of(error, blamed), step, names, conditions)


class _Ranks:
    """All ranks of a job, and what is known of them so far."""

    def __init__(self, groups: Sequence[ActorGroup], agents: Agents) -> None:
        self._agents = agents
        self._asked: list[tuple[Known, Any]] = [
            (Known(group.name, rank, home), actor)
            for group in groups
            for rank, (home, actor) in enumerate(zip(group.homes, group.actors, strict=True))
        ]
        self.known = [known for known, _ in self._asked]

    def ask_until_settled(self) -> None:
        """Ask until a rank is found that failed by itself, or no more of them fail."""
        until_s, unsettled = time.monotonic() + _QUIET_S, len(self.known)
        self._ask(self._asked)
        while not self._is_settled() and time.monotonic() < until_s:
            time.sleep(_POLL_S)
            asked = [(k, actor) for k, actor in self._asked if k.is_silent or k.is_busy]
            self._ask(asked)
            if len(asked) < unsettled:
                until_s, unsettled = time.monotonic() + _QUIET_S, len(asked)
        self._look([known for known in self.known if known.status is None], with_stack=True)

    def _is_settled(self) -> bool:
        silent = [known for known in self.known if known.is_silent]
        if silent:
            self._look(silent, with_stack=False)
        if any(known.failed_for_sure for known in self.known):
            return True
        some_failed = any(known.lost_a_peer for known in self.known)
        return not (silent or (some_failed and any(known.is_busy for known in self.known)))

    @staticmethod
    def _ask(asked: Sequence[tuple[Known, Any]]) -> None:
        calls = [actor.status.remote() for _, actor in asked]
        if calls:
            ray.wait(calls, num_returns=len(calls), timeout=_ANSWER_S)
        for (known, _), call in zip(asked, calls, strict=True):
            known.status = None
            try:
                known.status = ray.get(call, timeout=0)
            except (GetTimeoutError, ActorUnavailableError):
                continue
            except RayActorError as error:
                known.death = death_of(error)

    def _look(self, ranks: Iterable[Known], with_stack: bool) -> None:
        seen = self._agents.look([known.home for known in ranks], with_stack)
        for known in ranks:
            known.seen = seen.get(known.home, known.seen)
