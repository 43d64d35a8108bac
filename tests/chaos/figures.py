"""What a chaos run shows in figures: faults by kind and place, and how long recovery took."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tests.chaos.faults import DRIVER, Fault
from tests.chaos.runs import Outcome


class Figures:
    """Faults that struck, and seconds from each to the first step that was done after it."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
        self._num_faults = self._num_runs = 0

    def add(self, faults: Sequence[Fault], outcome: Outcome) -> None:
        """Count the faults of a run."""
        self._num_runs += 1
        self._num_faults += len(faults)
        for fault in faults:
            seconds = self._seconds[_victim(fault), fault.deed, fault.moment]
            if fault.name in outcome.recovery_s:
                seconds.append(outcome.recovery_s[fault.name])

    def as_dict(self) -> dict[str, Any]:
        """Return counts and medians as plain data."""
        deeds: dict[str, list[float]] = defaultdict(list)
        for (victim, deed, _), seconds in self._seconds.items():
            deeds[f"{deed} {'driver' if victim == 'driver' else 'rank'}"] += seconds
        return {
            "runs": self._num_runs,
            "faults": self._num_faults,
            "recovery_s_median": {k: _median(v) for k, v in sorted(deeds.items())},
            "kinds": [
                {"victim": victim, "deed": deed, "moment": moment, "recovery_s": _rounded(seconds)}
                for (victim, deed, moment), seconds in sorted(self._seconds.items())
            ],
        }


def _victim(fault: Fault) -> str:
    if fault.place == DRIVER:
        return "driver"
    return f"ranks {sorted((fault.place, *fault.also))}"


def _median(seconds: Sequence[float]) -> float | None:
    return round(statistics.median(seconds), 1) if seconds else None


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(each, 1) for each in seconds]
