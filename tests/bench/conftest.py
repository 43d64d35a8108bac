"""Where the benchmarks leave the JSON they measured."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Keep = Callable[[str, Mapping[str, Any]], None]


@pytest.fixture
def keep() -> Keep:
    """Write a result as ``<name>.json`` into ``BENCH_OUT``, or ``runs/bench`` without it."""
    folder = Path(os.environ.get("BENCH_OUT", "runs/bench"))

    def write(name: str, result: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")

    return write
