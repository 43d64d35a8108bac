"""Ids of a run at trackers, kept in its folder, so that a resumed run goes on where it was."""

from pathlib import Path

_FOLDER = "trackers"


def known_id(output: Path, tracker: str) -> str | None:
    """Return the id that an earlier start of the run had at a tracker, if any."""
    path = output / _FOLDER / tracker
    return path.read_text().strip() if path.exists() else None


def keep_id(output: Path, tracker: str, run_id: str) -> None:
    """Keep the run's id at a tracker for later starts."""
    folder = output / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (folder / tracker).write_text(f"{run_id}\n")


class Frontier:
    """Which steps a tracker lacks, as it can add points but take none back.

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
