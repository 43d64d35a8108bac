"""Chrome trace of a few steps: a row per rank, a slice per op (chrome://tracing, Perfetto)."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disagg_train.errors import DataError
from disagg_train.metrics.records import RankReport, Span

START_STEP = "start step"
"""Name of the span with which every rank begins a step."""

_MICRO = 1_000_000


@dataclass(frozen=True)
class Trace:
    """What a run's ``trace.json`` tells.

    Args:
        numbers: of the steps; a trace that does not say begins with the run's second step.
        steps: per step, the spans of all ranks.
        rows: name of each global rank's row.
    """

    numbers: Sequence[int]
    steps: Sequence[Sequence[RankReport]]
    rows: Mapping[int, str]


def chrome_trace(
    steps: Iterable[Sequence[RankReport]], rows: Mapping[int, str], numbers: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the trace of some steps.

    Args:
        steps: per step, the reports of all ranks.
        rows: name of each global rank's row.
        numbers: of the steps.
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
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"steps": list(numbers)},
    }


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


def write_trace(
    path: Path,
    steps: Iterable[Sequence[RankReport]],
    rows: Mapping[int, str],
    numbers: Sequence[int] = (),
) -> None:
    """Write the trace as JSON."""
    path.write_text(json.dumps(chrome_trace(steps, rows, numbers)))


def read_trace(path: Path) -> list[list[RankReport]]:
    """Return per step the spans of all ranks, from a trace that a run wrote.

    Raises:
        DataError: there is no such file, or it is no such trace.
    """
    return [list(reports) for reports in load_trace(path).steps]


def load_trace(path: Path) -> Trace:
    """Return a trace that a run wrote.

    Raises:
        DataError: there is no such file, or it is no such trace.
    """
    try:
        content = json.loads(path.read_text())
        spans: dict[int, list[Span]] = defaultdict(list)
        rows: dict[int, str] = {}
        for event in content["traceEvents"]:
            if event["ph"] == "X":
                spans[event["tid"]].append(_span(event))
            else:
                rows[event["tid"]] = str(event["args"]["name"])
        numbers = [int(number) for number in content.get("otherData", {}).get("steps", ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no trace of a run ({error!r}); train with train.trace_steps of 1 or more"
        ) from error
    steps: list[list[RankReport]] = []
    for place, found in sorted(spans.items()):
        for number, of_step in enumerate(_cut_into_steps(found)):
            if number == len(steps):
                steps.append([])
            steps[number].append(RankReport(place, spans=of_step))
    if len(numbers) != len(steps):
        numbers = list(range(1, len(steps) + 1))
    return Trace(numbers, steps, rows)


def _span(event: Mapping[str, Any]) -> Span:
    """Return what ``_slice`` made an event of; the subject is the second word of its name."""
    begin_s, duration_s = event["ts"] / _MICRO, event["dur"] / _MICRO
    subject = "" if event["name"] == START_STEP else " ".join(event["name"].split()[1:2])
    return Span(event["name"], subject, event["cat"], begin_s, begin_s + duration_s)


def _cut_into_steps(spans: Sequence[Span]) -> list[list[Span]]:
    """Cut one rank's spans where a name comes again: within a step every op is another one."""
    steps: list[list[Span]] = []
    seen: set[str] = set()
    for span in spans:
        if span.name in seen or not steps:
            steps.append([])
            seen.clear()
        seen.add(span.name)
        steps[-1].append(span)
    return steps
