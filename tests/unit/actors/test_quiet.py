"""What Ray prints of its own accord stays out of a notebook's cells."""

import re

import pytest
from ray._private import worker

from actors.quiet import hush_ray


def _printed(line: str) -> list[str]:
    batch = {"lines": [line], "pid": "raylet", "is_err": False}
    return [
        kept for found in worker.stdout_deduplicator.deduplicate(batch) for kept in found["lines"]
    ]


@pytest.fixture(autouse=True)
def chatty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.stdout_deduplicator, "skip_re", None)


def test_dead_workers_are_not_reported_twice() -> None:
    died = "A worker died or was killed while executing a task by an unexpected system error."
    assert _printed(died) == [died]
    hush_ray()
    assert _printed(died) == []
    assert _printed("The node ran out of memory.") == ["The node ran out of memory."]


def test_what_somebody_set_stays() -> None:
    worker.stdout_deduplicator.skip_re = re.compile("theirs")
    hush_ray()
    assert worker.stdout_deduplicator.skip_re.pattern == "theirs"
