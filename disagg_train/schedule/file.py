"""Schedules as files, for people to read and to write: YAML, an op a line.

name: 1f1b
num_microbatches: 4
in_flight: {vision: 2, language: 1}
ranks:
  0-1:
    - forward vision 0
    - send_forward vision->language 0
    ...
"""

import re
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from disagg_train.errors import PlanError
from disagg_train.schedule.ops import Op, OpKind, Schedule

_OP = re.compile(r"(?P<kind>\w+)( (?P<where>[^ ]+))?( (?P<microbatch>\d+))?")
_RANKS = re.compile(r"(?P<first>\d+)(-(?P<last>\d+))?")


def save_schedule(schedule: Schedule, path: Path) -> None:
    """Write a schedule; neighbouring ranks with one op list share it."""
    content = {
        "name": schedule.name,
        "num_microbatches": schedule.num_microbatches,
        "in_flight": dict(schedule.in_flight),
        "ranks": {
            _ranks(run): [str(op) for op in schedule.ops[run[0]]] for run in runs_of_ranks(schedule)
        },
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def runs_of_ranks(schedule: Schedule) -> list[list[int]]:
    """Return neighbouring ranks that run one op list, run by run."""
    places = range(len(schedule.ops))
    return [list(run) for _, run in groupby(places, key=lambda place: schedule.ops[place])]


def _ranks(run: list[int]) -> str:
    return str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}"


def load_schedule(path: Path) -> Schedule:
    """Read a schedule; whether it is a right one is for ``check`` to say.

    Raises:
        PlanError: the file does not say what a schedule must; names the entry.
    """
    try:
        content = yaml.safe_load(path.read_text())
        ops = _all_ops(path, content["ranks"])
        in_flight = {str(stage): int(most) for stage, most in content["in_flight"].items()}
        return Schedule(str(content["name"]), ops, int(content["num_microbatches"]), in_flight)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(
            f"{path}: no schedule ({error}); it needs name, num_microbatches, in_flight and ranks"
        ) from None


def _all_ops(path: Path, by_ranks: dict[Any, list[str]]) -> tuple[tuple[Op, ...], ...]:
    found: dict[int, tuple[Op, ...]] = {}
    for ranks, lines in by_ranks.items():
        run = _RANKS.fullmatch(str(ranks))
        if run is None:
            raise PlanError(f"{path}: ranks {ranks!r}; write one, or a first and a last as 0-3")
        ops = tuple(_op(path, ranks, number, str(line)) for number, line in enumerate(lines))
        for place in range(int(run["first"]), int(run["last"] or run["first"]) + 1):
            if place in found:
                raise PlanError(f"{path}: rank {place} has two op lists")
            found[place] = ops
    missing = sorted(set(range(len(found))) - set(found))
    if missing:
        raise PlanError(f"{path}: rank {missing[0]} has no op list")
    return tuple(found[place] for place in range(len(found)))


def _op(path: Path, ranks: object, number: int, line: str) -> Op:
    match = _OP.fullmatch(line.strip())
    if match is None or match["kind"] not in set(OpKind):
        raise PlanError(
            f"{path}: ranks {ranks}, op {number}: {line!r} is no op; an op is a kind of "
            f"{[str(kind) for kind in OpKind]}, a stage or an edge, and a microbatch"
        )
    kind, where = OpKind(match["kind"]), match["where"] or ""
    microbatch = -1 if match["microbatch"] is None else int(match["microbatch"])
    if kind.is_send or kind.is_recv:
        return Op(kind, "", microbatch, where)
    return Op(kind, where, microbatch)
