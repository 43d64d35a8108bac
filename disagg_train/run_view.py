"""What a person holds of a run: its steps one by one, its table, its report."""

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from disagg_train.errors import ConfigError
from disagg_train.metrics.frame import step_frame
from disagg_train.metrics.page import Page
from disagg_train.metrics.records import StepRecord
from disagg_train.metrics.sinks import read_json_lines

if TYPE_CHECKING:
    from pandas import DataFrame


class Steps(Iterator[StepRecord]):
    """The steps of a run, which trains as they are iterated over.

    Args:
        records: of the steps; closing it ends the run.
    """

    def __init__(self, records: Generator[StepRecord]) -> None:
        self._records = records

    def __next__(self) -> StepRecord:
        """Train one more step."""
        return next(self._records)

    def close(self) -> None:
        """End the run, and its actors, where it is."""
        self._records.close()

    def __repr__(self) -> str:
        return "<steps to iterate over, which trains them; Trainer.run() does so in one call>"


class RunView:
    """A run, as its folder tells of it.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def records(self) -> list[StepRecord]:
        """What is known of every step, each step once."""
        lines = read_json_lines(self.folder / "metrics.jsonl")
        return [StepRecord.from_dict(line) for line in lines]

    @property
    def step_stats(self) -> "DataFrame":
        """A row per step, as a pandas frame; its columns are those of ``step_frame``."""
        return step_frame(self.records)

    def report(self, path: str | Path | None = None) -> Page:
        """Write the run's report, one page of HTML; a notebook's cell shows it.

        Args:
            path: of the page; ``report.html`` in the run's folder where not given.

        Raises:
            ConfigError: the run's folder is on another machine.
        """
        _check_folder(self.folder)
        return report_of(self.folder, path)

    def __repr__(self) -> str:
        return f"<run in {self.folder}>"


def read_run(folder: str | Path) -> RunView:
    """Return a run, finished or not, by its output folder.

    Raises:
        ConfigError: there is no run.
    """
    _check_folder(Path(folder))
    return RunView(Path(folder))


def _check_folder(folder: Path) -> None:
    if not (folder / "metrics.jsonl").exists():
        raise ConfigError(
            f"{folder} holds no metrics.jsonl on this machine; name the output folder of a run, "
            f"as a path that is seen from here"
        )


def report_of(folder: Path, path: str | Path | None = None) -> Page:
    """Write the report of the run in a folder."""
    from disagg_train.report.page import write_report

    return Page(write_report(folder, None if path is None else Path(path)))
