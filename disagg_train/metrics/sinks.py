"""Where records go: lines of JSON in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self


class JsonLines:
    """A file of one JSON object per line, readable while it is written.

    Args:
        path: of the file; an older one is replaced.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one object."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
