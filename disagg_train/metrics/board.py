"""What a run tells of its steps to whoever looks on from elsewhere; actors make it reachable."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from disagg_train.metrics.records import StepRecord

KEPT = 20_000
"""Records and notes that a board keeps, the newest."""
_SILENT_S = 2.0


@dataclass(frozen=True)
class RunFacts:
    """What a run is.

    Args:
        name: under which it is attached to.
        num_steps: of its job.
        folder: its output folder, on the driver's node.
    """

    name: str
    num_steps: int
    folder: str


@dataclass(frozen=True)
class News:
    """What is new to one reader.

    Args:
        records: of steps, in the order in which they were done; a step that a failure took back
            comes once more.
        notes: for people.
        num_records: how many records there were by now, also those not kept.
        num_notes: the same of notes.
        outcome: how the run ended; empty while it goes on.
    """

    records: Sequence[StepRecord] = ()
    notes: Sequence[str] = ()
    num_records: int = 0
    num_notes: int = 0
    outcome: str = ""


class Board:
    """What is pinned up, who reads it, and what they wish.

    Args:
        facts: what the run is.
        kept: newest records and notes that stay.
    """

    def __init__(self, facts: RunFacts, kept: int = KEPT) -> None:
        self._facts = facts
        self._records: deque[StepRecord] = deque(maxlen=kept)
        self._notes: deque[str] = deque(maxlen=kept)
        self._num_records = self._num_notes = 0
        self._outcome = ""
        self._heard_s: dict[str, float] = {}
        self._stop_wanted = False

    def facts(self) -> RunFacts:
        """Return what the run is."""
        return self._facts

    def pin(self, records: Sequence[StepRecord], notes: Sequence[str]) -> bool:
        """Add what is new; return whether somebody wants the run to stop."""
        self._records.extend(records)
        self._notes.extend(notes)
        self._num_records += len(records)
        self._num_notes += len(notes)
        return self._stop_wanted

    def news(self, reader: str, records_seen: int, notes_seen: int) -> News:
        """Return what a reader has not seen; who has read the outcome is done.

        Args:
            reader: any name, its own.
            records_seen: ``num_records`` of its last news.
            notes_seen: ``num_notes`` of its last news.
        """
        if self._outcome:
            self._heard_s.pop(reader, None)
        else:
            self._heard_s[reader] = time.monotonic()
        return News(
            _newest(self._records, self._num_records - records_seen),
            _newest(self._notes, self._num_notes - notes_seen),
            self._num_records,
            self._num_notes,
            self._outcome,
        )

    def ask_to_stop(self) -> None:
        """Leave the wish that the run stops."""
        self._stop_wanted = True

    def finish(self, outcome: str) -> bool:
        """Say how the run ended; return whether nobody is left who reads that in a moment."""
        self._outcome = outcome
        since_s = time.monotonic() - _SILENT_S
        return not any(heard_s > since_s for heard_s in self._heard_s.values())


def _newest[T](kept: deque[T], count: int) -> tuple[T, ...]:
    return tuple(kept)[-count:] if count > 0 else ()


def history(records: Sequence[StepRecord]) -> list[StepRecord]:
    """Return each step's last record, in order: what the weights that there are came from."""
    kept: list[StepRecord] = []
    for record in records:
        while kept and kept[-1].step >= record.step:
            kept.pop()
        kept.append(record)
    return kept
