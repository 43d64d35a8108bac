"""A run's board as a small named actor of the driver's own, which ends with it.

The driver pins up what is new after a step and never waits for an answer; other processes read it,
and may leave the wish that the run stops.
"""

import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from disagg_train.config.secret_values import masked
from disagg_train.driver.signals import deferred_signals
from disagg_train.errors import RunStopped
from disagg_train.metrics.board import KEPT, Board, RunFacts
from disagg_train.metrics.records import StepRecord

NAMESPACE = "disagg_train"
_FAREWELL_S, _POLL_S = 2.0, 0.05

_BoardActor = ray.remote(num_cpus=0, max_restarts=0)(Board)


class Announcer:
    """The driver's end of a board; no error of the board's, of whatever kind, disturbs the run.

    One call is under way at a time, and what is new meanwhile waits for the next one.

    Args:
        facts: what the run is; where its name is taken, it gets a number.
    """

    def __init__(self, facts: RunFacts) -> None:
        self.name = facts.name
        self._records: deque[StepRecord] = deque(maxlen=KEPT)
        self._notes: deque[str] = deque(maxlen=KEPT)
        self._under_way: ray.ObjectRef | None = None
        self._board: Any = None
        with contextlib.suppress(Exception):
            self._board, self.name = _put_up(facts)

    def tell(self, records: Sequence[StepRecord], notes: Sequence[str]) -> bool:
        """Pin up what is new; return at once whether somebody wants the run to stop."""
        if self._board is None:
            return False
        self._records.extend(records)
        self._notes.extend(notes)
        try:
            return self._send()
        except Exception:  # lost with its node, say; nobody looks on any more
            self._board = self._under_way = None
            return False

    def _send(self) -> bool:
        stop_wanted = False
        if self._under_way is not None:
            if not ray.wait([self._under_way], timeout=0)[0]:
                return False
            stop_wanted = ray.get(self._under_way)
        self._under_way = self._board.pin.remote(tuple(self._records), tuple(self._notes))
        self._records.clear()
        self._notes.clear()
        return stop_wanted

    def close(self, outcome: str) -> None:
        """Tell those who look on how the run ended, then take the board down.

        It waits for them, and for Ray, but for a few seconds only.
        """
        if self._board is None:
            return
        board, self._board = self._board, None
        until_s = time.monotonic() + _FAREWELL_S
        with contextlib.suppress(Exception):
            board.pin.remote(tuple(self._records), tuple(self._notes))
            while not ray.get(board.finish.remote(outcome), timeout=_FAREWELL_S):
                if time.monotonic() > until_s:
                    break
                time.sleep(_POLL_S)
        with contextlib.suppress(Exception):
            ray.kill(board)
            while self.name in boards() and time.monotonic() < until_s + _FAREWELL_S:
                time.sleep(_POLL_S)


@contextlib.contextmanager
def announcing(facts: RunFacts, notes: list[str]) -> Iterator[Announcer]:
    """Let others look on at a run from now to its end, and tell them how that comes.

    Args:
        facts: what the run is.
        notes: for people; one is added where another run of the name trains in the cluster.
    """
    announcer, outcome = Announcer(facts), "finished"
    if announcer.name != facts.name:
        notes.append(
            f"another run named {facts.name!r} is training in this cluster; attach to this one as "
            f"{announcer.name!r}"
        )
    try:
        yield announcer
    except BaseException as error:
        failed = f"failed: {type(error).__name__}: {error}"
        outcome = _OUTCOMES.get(type(error)) or masked(failed)
        raise
    finally:
        with deferred_signals():
            announcer.close(outcome)


_OUTCOMES: dict[type[BaseException], str] = {
    GeneratorExit: "left before its last step",
    KeyboardInterrupt: "interrupted",
    RunStopped: "stopped, as asked",
    SystemExit: "terminated",
}


def _put_up(facts: RunFacts) -> tuple[Any, str]:
    """Return a new board on this node, and the first free one of its names."""
    place = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    number, name = 1, facts.name
    while True:
        options = {"name": name, "namespace": NAMESPACE, "scheduling_strategy": place}
        try:
            return _BoardActor.options(**options).remote(replace(facts, name=name)), name
        except ValueError:  # the name is taken
            number += 1
            name = f"{facts.name}-{number}"


def boards() -> list[str]:
    """Return the names of all runs of the cluster that can be attached to."""
    named = list_named_actors(all_namespaces=True)
    return sorted(each["name"] for each in named if each["namespace"] == NAMESPACE)
