"""What people ask of a run while it trains: files in its folder, so any process can ask.

A request is taken between two steps, once.
"""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from disagg_train.errors import ConfigError

_FOLDER = "requests"


@dataclass(frozen=True)
class ResizeRequest:
    """Give a group another number of ranks."""

    group: str
    ranks: int


class Requests:
    """The requests to one run.

    Args:
        output: the run's output folder.
    """

    def __init__(self, output: Path) -> None:
        self._folder = output / _FOLDER

    def ask(self, request: ResizeRequest) -> None:
        """Leave a request; a file is complete as soon as it has its name."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{time.time_ns():020d}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(request)))
        os.replace(partial, path)

    @property
    def waiting(self) -> bool:
        """Whether there are any."""
        return any(self._paths())

    def take(self) -> list[ResizeRequest]:
        """Return all requests, oldest first, and forget them.

        Raises:
            ConfigError: a file there is no request.
        """
        found = []
        for path in self._paths():
            content = path.read_text()
            path.unlink()
            try:
                found.append(ResizeRequest(**json.loads(content)))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path} was no request: {error}") from None
        return found

    def clear(self) -> None:
        """Forget what was asked of an earlier start of the run."""
        for path in self._paths():
            path.unlink()

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
