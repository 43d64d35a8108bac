"""Where the time of each module's ranks goes: forward, backward, transfers, sync, idle."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from disagg_train.report.step_summary import category
from disagg_train.report.waits import StepTimeline, TimedOp
from disagg_train.schedule.ops import OpKind

_AT_SOURCE = (OpKind.SEND_FORWARD, OpKind.RECV_BACKWARD)


@dataclass(frozen=True)
class ModuleShares:
    """Parts of a step, the mean of a module's ranks over some steps; together they are 1.

    Args:
        forward: the module's forwards.
        backward: its backwards.
        boundary: its ends of transfers, without the waits.
        sync: start of the step, gradient sync, agreement, update.
        others: other modules on the same ranks.
        idle: waits, and time without any op.
    """

    forward: float = 0.0
    backward: float = 0.0
    boundary: float = 0.0
    sync: float = 0.0
    others: float = 0.0
    idle: float = 0.0


KINDS = ("forward", "backward", "boundary", "sync", "others", "idle")


def module_shares(
    timelines: Sequence[StepTimeline], places: Mapping[str, Sequence[int]]
) -> dict[str, ModuleShares]:
    """Return where the time of modules goes.

    Args:
        timelines: of some steps.
        places: per module, its global ranks.
    """
    return {module: _shares(timelines, module, ranks) for module, ranks in places.items()}


def _shares(timelines: Sequence[StepTimeline], module: str, places: Sequence[int]) -> ModuleShares:
    found = [
        _of_rank(timeline.rows[place], module, timeline.length_s)
        for timeline in timelines
        for place in places
        if place in timeline.rows and timeline.length_s
    ]
    if not found:
        return ModuleShares()
    return ModuleShares(**{kind: mean(each[kind] for each in found) for kind in KINDS})


def _of_rank(row: Sequence[TimedOp], module: str, length_s: float) -> dict[str, float]:
    shares: dict[str, float] = defaultdict(float)
    for timed in row:
        kind = category(timed) if module_of(timed) in (module, "") else "others"
        shares[kind] += timed.work_s / length_s
    shares["idle"] = max(0.0, 1.0 - sum(shares.values()))
    return shares


def module_of(timed: TimedOp) -> str:
    """Return the module that an op is of; a transfer is of the module at the rank's own end.

    The start of a step and the agreement are of none: an empty name.
    """
    op = timed.op
    if op is None:
        return ""
    if op.boundary:
        source, _, destination = op.boundary.partition("->")
        return (source if op.kind in _AT_SOURCE else destination).partition(".")[0]
    return op.module.partition(".")[0]
