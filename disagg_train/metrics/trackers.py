"""What runs at trackers have in common: an id, kept in the run's folder, and each step once."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_train.metrics.measures import Measures, evaluated_step, evaluation_scalars
from disagg_train.metrics.records import Evaluation

_FOLDER = "trackers"


@dataclass(frozen=True)
class TrackedRun:
    """What trackers are told of a run.

    Args:
        name: of the run.
        content: of the job file.
        output: folder of the run.
        steps_done: training steps that the run has behind it.
    """

    name: str
    content: Mapping[str, Any]
    output: Path
    steps_done: int

    def known_id(self, tracker: str) -> str | None:
        """Return the id that an earlier start of the run had at a tracker, if it goes on there."""
        path = self.output / _FOLDER / tracker
        return path.read_text().strip() if self.steps_done and path.exists() else None

    def keep_id(self, tracker: str, run_id: str) -> None:
        """Keep the run's id at a tracker for later starts."""
        folder = self.output / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tracker).write_text(f"{run_id}\n")


class Frontier:
    """Which steps a tracker lacks.

    A step that runs again comes out as before, on the same layout to the bit; its first points
    stand.

    Args:
        first: number of the first step that the tracker lacks.
    """

    def __init__(self, first: int) -> None:
        self._step = self._evaluated = first

    def pass_step(self, step: int) -> bool:
        """Return whether a step's points are new; they count as known then."""
        is_new = step >= self._step
        self._step = max(self._step, step + 1)
        return is_new

    def pass_evaluation(self, step: int) -> bool:
        """Return whether the points of an evaluation after a step are new, and not late."""
        is_new = step >= self._evaluated and step >= self._step - 1
        self._evaluated = max(self._evaluated, step + 1)
        return is_new


class Tracker(ABC):
    """A run at a tracker, which can add points but take none back.

    Args:
        first: number of the first step that the tracker lacks.
    """

    def __init__(self, first: int) -> None:
        self._frontier = Frontier(first)

    @abstractmethod
    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add points of a step; a second call may add more to the same one."""

    @abstractmethod
    def close(self, ok: bool) -> None:
        """End the run."""

    def add_step(self, measures: Measures) -> None:
        """Log a step's scalars, unless it is there already."""
        step = measures.record.step
        if self._frontier.pass_step(step):
            self.log(step, measures.scalars())

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Log an evaluation's scalars with the step before it, unless they are there already."""
        step = evaluated_step(evaluation)
        if self._frontier.pass_evaluation(step):
            self.log(step, evaluation_scalars(evaluation))

    def rewind(self, steps_done: int) -> None:
        """Do nothing: what was logged stays."""
        del steps_done
