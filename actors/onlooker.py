"""Reads a run's board from any process that reaches its Ray cluster."""

import contextlib
import time
import uuid
from dataclasses import replace
from typing import Any, Self

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.board import NAMESPACE, boards
from actors.cluster import RayConnection
from disagg_train.errors import ClusterError
from disagg_train.metrics.board import News, RunFacts

_START_S, _ANSWER_S, _POLL_S = 60.0, 10.0, 0.1


class Onlooker:
    """Looks on at a run; a context manager that leaves the cluster if it joined it.

    Args:
        name: of the run.
        address: of its Ray cluster; a process that is connected already stays where it is.
        wait_s: how long to wait for a run of that name to begin.

    Raises:
        ClusterError: there is no such cluster, or no such run.
    """

    def __init__(self, name: str, address: str, wait_s: float = 0.0) -> None:
        self._connection = RayConnection(address, num_cpus=1, is_passing=True)
        self._reader, self._seen = uuid.uuid4().hex, News()
        try:
            self._board = _found(name, wait_s)
            self.facts = _facts(name, self._board)
        except BaseException:
            self.close()
            raise

    def news(self) -> News:
        """Return what is new since the last time; once there is an outcome, nothing is."""
        nothing = replace(self._seen, records=(), notes=())
        if nothing.outcome:
            return nothing
        seen = nothing.num_records, nothing.num_notes
        try:
            news = ray.get(self._board.news.remote(self._reader, *seen), timeout=_ANSWER_S)
        except GetTimeoutError:  # busy, or far away
            return nothing
        except RayError:
            news = replace(nothing, outcome="ended without a word")
        self._seen = news
        if news.outcome:
            self.close()
        return news

    def ask_to_stop(self) -> None:
        """Have the run end its step, save, and end; one that is known to have ended is left alone.

        Raises:
            ClusterError: it cannot be reached.
        """
        if self._seen.outcome:
            return
        try:
            ray.get(self._board.ask_to_stop.remote(), timeout=_ANSWER_S)
        except RayError as error:
            raise ClusterError(
                f"the run named {self.facts.name!r} cannot be asked ({type(error).__name__}): it "
                f"has ended, or its node is busy or lost"
            ) from None

    def close(self) -> None:
        """Leave the cluster, if it was joined for this and nothing else here uses it."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _facts(name: str, board: Any) -> RunFacts:
    try:
        facts: RunFacts = ray.get(board.facts.remote(), timeout=_START_S)
    except RayError as error:
        raise ClusterError(
            f"the run named {name!r} did not answer in {_START_S:g} s, or ended just now "
            f"({type(error).__name__}); try again"
        ) from None
    return facts


def _found(name: str, wait_s: float) -> Any:
    until_s = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(ValueError):
            return ray.get_actor(name, namespace=NAMESPACE)
        if time.monotonic() > until_s:
            known = ", ".join(boards()) or "none"
            raise ClusterError(
                f"no run named {name!r} is training in this cluster; there are: {known}. A run "
                f"that has ended is read from its folder: disagg_train.read_run(FOLDER)"
            )
        time.sleep(_POLL_S)
