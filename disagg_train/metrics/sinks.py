"""Where records go: lines of JSON in the run's folder, and what else takes a run's numbers."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from disagg_train.metrics.measures import Measures
from disagg_train.metrics.records import Evaluation

Keep = Callable[[Mapping[str, Any]], bool]


class Sink(Protocol):
    """Takes the numbers of a run, in the order of its steps; may raise whatever it likes."""

    def add_step(self, measures: Measures) -> None:
        """Take a step that is done."""

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Take an evaluation."""

    def rewind(self, steps_done: int) -> None:
        """Know that all steps but the first ``steps_done`` are taken back, and come again."""

    def close(self, ok: bool) -> None:
        """End the run; ``ok`` where it came to its last step."""


def _nothing(record: Mapping[str, Any]) -> bool:
    del record
    return False


class JsonLines:
    """A file of one JSON object per line, readable while it is written.

    Args:
        path: of the file.
        keep: tells which of the lines that are there stay; none where not given.
    """

    def __init__(self, path: Path, keep: Keep = _nothing) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = self._keep_only(keep)

    def rewind(self, keep: Keep) -> None:
        """Take back what does not count any more: all lines but those that ``keep`` names."""
        self._file.close()
        self._file = self._keep_only(keep)

    def _keep_only(self, keep: Keep) -> TextIO:
        """Replace the file as a whole, so that whoever dies here leaves the old or the new one."""
        kept = [record for record in read_json_lines(self._path) if keep(record)]
        partial = self._path.with_name(f"{self._path.name}.partial")
        partial.write_text("".join(json.dumps(record) + "\n" for record in kept))
        os.replace(partial, self._path)
        return self._path.open("a")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file; a last line that was cut off while written does not count."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
