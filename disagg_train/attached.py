"""Looks on at a run that another process trains: ``disagg_train.attach("digits")``."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from actors.onlooker import Onlooker
from disagg_train.metrics.board import history
from disagg_train.metrics.records import StepRecord
from disagg_train.run_view import RunView

_POLL_S = 0.25


class AttachedRun(RunView):
    """A run of another process; a context manager that lets it go, and never ends it.

    Args:
        onlooker: reads what the run's driver tells.
    """

    def __init__(self, onlooker: Onlooker) -> None:
        facts = onlooker.facts
        super().__init__(Path(facts.folder))
        self.name, self.num_steps = facts.name, facts.num_steps
        self._onlooker = onlooker
        self._told: list[StepRecord] = []
        self._notes: list[str] = []
        self._outcome = ""

    @property
    def records(self) -> list[StepRecord]:
        """What is known by now of every step, each step once; of a long run, the newest 20,000."""
        self._ask()
        return history(self._told)

    @property
    def notes(self) -> list[str]:
        """What the run said by now, for people."""
        self._ask()
        return list(self._notes)

    @property
    def state(self) -> str:
        """``training``, or how the run ended."""
        self._ask()
        return self._outcome or "training"

    def __iter__(self) -> Iterator[StepRecord]:
        """Yield the records that there are, then each as its step is done, to the run's end.

        A step that a failure took back comes once more.
        """
        seen = 0
        while True:
            self._ask()
            while seen < len(self._told):
                seen += 1
                yield self._told[seen - 1]
            if self._outcome:
                return
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """Have the run end its step, save and end, as SIGTERM does; return at once.

        In its own process the run raises ``RunStopped``. Iterate, or look at ``state``, to see it
        end.
        """
        self._onlooker.ask_to_stop()

    def close(self) -> None:
        """Let the run go; what is known of it stays."""
        self._onlooker.close()
        self._outcome = self._outcome or "detached"

    def _ask(self) -> None:
        if not self._outcome:
            news = self._onlooker.news()
            self._told += news.records
            self._notes += news.notes
            self._outcome = news.outcome

    def __repr__(self) -> str:
        return f"<run {self.name!r} of {self.num_steps} steps in {self.folder}: {self.state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attach(name: str, address: str = "auto", wait_s: float = 0.0) -> AttachedRun:
    """Look on at a run by the name of its job, from any process and notebook.

    Args:
        name: of the job; a second run of a name in a cluster is told its own in a note.
        address: of the Ray cluster that it trains in; ``auto`` for the one on this machine. A
            process that is connected to Ray already stays where it is.
        wait_s: how long to wait for a run of that name to begin.

    Raises:
        ClusterError: there is no such run; its text lists those that there are.
    """
    return AttachedRun(Onlooker(name, address, wait_s))
