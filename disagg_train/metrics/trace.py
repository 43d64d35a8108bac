"""Chrome trace of a few steps: a row per rank, a slice per op (chrome://tracing, Perfetto)."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from disagg_train.metrics.records import RankReport

_MICRO = 1_000_000


def chrome_trace(steps: Iterable[Sequence[RankReport]], rows: Mapping[int, str]) -> dict[str, Any]:
    """Return the trace of some steps.

    Args:
        steps: per step, the reports of all ranks.
        rows: name of each global rank's row.
    """
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": place, "args": {"name": name}}
        for place, name in rows.items()
    ]
    for reports in steps:
        for report in reports:
            events += [
                _slice(report.place, span.name, span.category, span.begin_s, span.end_s)
                for span in report.spans
            ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _slice(place: int, name: str, category: str, begin_s: float, end_s: float) -> dict[str, Any]:
    return {
        "ph": "X",
        "name": name,
        "cat": category,
        "pid": 0,
        "tid": place,
        "ts": begin_s * _MICRO,
        "dur": (end_s - begin_s) * _MICRO,
    }


def write_trace(path: Path, steps: Iterable[Sequence[RankReport]], rows: Mapping[int, str]) -> None:
    """Write the trace as JSON."""
    path.write_text(json.dumps(chrome_trace(steps, rows)))
