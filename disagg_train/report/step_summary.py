"""What a recorded step tells, in numbers and sentences: the slowest rank, and why others idled."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from disagg_train.driver.simulation import seconds
from disagg_train.report.blame import BETWEEN, Blame, Cause, Causes, longest_first
from disagg_train.report.waits import StepTimeline, TimedOp
from disagg_train.schedule.ops import OpKind

_LONGEST = 6
_NAMED = 2
_WORTH_NAMING = 0.1
"""Part of a rank's idle time below which a cause is not named."""
_OUTSIDE = "was done, or had not begun"


@dataclass(frozen=True)
class RankSummary:
    """A rank in one step, in seconds.

    Args:
        place: global rank.
        forward_s: in forwards.
        backward_s: in backwards.
        boundary_s: in transfers.
        sync_s: in the start of the step, gradient syncs, the agreement and the update.
        idle_s: all the rest: waits, and time without any op.
        held_up_s: so long other ranks waited because of what this one did, summed over them.
        causes: why it idled, the longest first.
    """

    place: int
    forward_s: float
    backward_s: float
    boundary_s: float
    sync_s: float
    idle_s: float
    held_up_s: float
    causes: Sequence[tuple[Cause, float]]

    @property
    def busy_s(self) -> float:
        """Seconds at work."""
        return self.forward_s + self.backward_s + self.boundary_s + self.sync_s


@dataclass(frozen=True)
class Wait:
    """A long wait.

    Args:
        place: global rank that waits.
        index: of the op in the rank's row.
        wait_s: how long.
        text: what for, and what that rank did meanwhile.
    """

    place: int
    index: int
    wait_s: float
    text: str


@dataclass(frozen=True)
class StepSummary:
    """What a step tells.

    Args:
        sentence: the whole in a sentence or two.
        ranks: in their order.
        waits: the longest ones.
    """

    sentence: str
    ranks: Sequence[RankSummary]
    waits: Sequence[Wait]


def summarise(timeline: StepTimeline, names: Mapping[int, str]) -> StepSummary:
    """Return what a step tells.

    Args:
        timeline: of the step.
        names: of the ranks.
    """
    blame = Blame(timeline)
    causes = {place: _causes(row, blame) for place, row in timeline.rows.items()}
    held_up: dict[int, float] = defaultdict(float)
    for place, found in causes.items():
        for (other, _), spent_s in found.items():
            held_up[other] += spent_s * (other != place)
    ranks = [
        _rank(place, row, timeline.length_s, held_up[place], causes[place])
        for place, row in timeline.rows.items()
    ]
    waits = _longest(timeline, blame, names)
    return StepSummary(_sentence(timeline, ranks, names), ranks, waits)


def _causes(row: Sequence[TimedOp], blame: Blame) -> Causes:
    found: Causes = defaultdict(float)
    for timed in row:
        for cause, spent_s in blame.of_wait(timed).items():
            found[cause] += spent_s
    return found


def _rank(
    place: int,
    row: Sequence[TimedOp],
    length_s: float,
    held_up_s: float,
    causes: Causes,
) -> RankSummary:
    spent: dict[str, float] = defaultdict(float)
    for timed in row:
        spent[category(timed)] += timed.work_s
    idle_s = max(0.0, length_s - sum(spent.values()))
    between_s = sum(max(0.0, b.begin_s - a.end_s) for a, b in zip(row, row[1:], strict=False))
    waited_s = sum(timed.wait_s for timed in row)
    causes[place, BETWEEN] += between_s
    causes[place, _OUTSIDE] += max(0.0, idle_s - waited_s - between_s)
    return RankSummary(
        place,
        spent["forward"],
        spent["backward"],
        spent["boundary"],
        spent["sync"],
        idle_s,
        held_up_s,
        longest_first(causes),
    )


def category(timed: TimedOp) -> str:
    """Return what an op counts as: forward, backward, boundary or sync."""
    if timed.op is None:
        return "sync"
    kind = timed.op.kind
    if kind.is_compute:
        ahead = kind in (OpKind.FORWARD, OpKind.EVALUATE, OpKind.RUN_AHEAD)
        return "forward" if ahead else "backward"
    return "boundary" if kind.is_send or kind.is_recv else "sync"


def _longest(timeline: StepTimeline, blame: Blame, names: Mapping[int, str]) -> list[Wait]:
    """Return the longest waits, one for each op: ranks that do the same wait alike."""
    by_name: dict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for place, row in timeline.rows.items():
        for index, timed in enumerate(row):
            if timed.waits_for is not None:
                by_name[timed.name].append((timed.wait_s, place, index))
    longest = sorted((max(found), len(found)) for found in by_name.values())
    waits = []
    for (wait_s, place, index), count in longest[: -_LONGEST - 1 : -1]:
        timed = timeline.rows[place][index]
        text = f"{_waited_for(timed, names)}{_meanwhile(timed, blame, names)}"
        others = f" ({count - 1} more waited there)" if count > 1 else ""
        waits.append(Wait(place, index, wait_s, text + others))
    return waits


def _waited_for(timed: TimedOp, names: Mapping[int, str]) -> str:
    who = names[timed.waits_for] if timed.waits_for is not None else "nobody"
    if timed.op is None:
        return f"for {who} to begin the step"
    kind, microbatch = timed.op.kind, timed.op.microbatch
    if kind.is_recv:
        what = "the gradients of microbatch" if kind.is_gradient else "microbatch"
        return f"for {what} {microbatch} from {who}"
    if kind.is_send:
        return f"for {who} to receive microbatch {microbatch - 2}"
    return f"for {who} to come to {timed.name}"


def _meanwhile(timed: TimedOp, blame: Blame, names: Mapping[int, str]) -> str:
    """Return what kept the rank that was waited for, or one behind it."""
    causes = longest_first(blame.of_wait(timed))
    if not causes:
        return ""
    (place, what), spent_s = causes[0]
    return f"; {seconds(spent_s)} of it {names[place]} {what}"


def _sentence(
    timeline: StepTimeline, ranks: Sequence[RankSummary], names: Mapping[int, str]
) -> str:
    if not ranks:
        return f"Step {timeline.number} recorded nothing."
    slowest = max(ranks, key=lambda rank: rank.busy_s)
    idlest = max(ranks, key=lambda rank: rank.idle_s)
    length_s = timeline.length_s
    text = (
        f"Step {timeline.number} took {seconds(length_s)}. Slowest rank: "
        f"{names[slowest.place]}, at work {slowest.busy_s / length_s:.0%} of it."
    )
    if idlest is slowest:
        return text
    return (
        f"{text} {names[idlest.place]} idled most, {idlest.idle_s / length_s:.0%}: "
        f"{causes_in_words(idlest, names)}."
    )


def causes_in_words(rank: RankSummary, names: Mapping[int, str]) -> str:
    """Return the main causes of a rank's idle time; ranks that did the same are named as one."""
    found: dict[tuple[bool, str], list[tuple[float, int]]] = defaultdict(list)
    for (place, what), spent_s in rank.causes:
        found[place == rank.place, what].append((spent_s, place))
    main = sorted(found.items(), key=lambda item: -sum(spent_s for spent_s, _ in item[1]))
    parts = []
    for (is_own, what), spent in main[:_NAMED]:
        total_s = sum(spent_s for spent_s, _ in spent)
        who = "it" if is_own else _named([place for _, place in spent], names)
        if total_s > _WORTH_NAMING * rank.idle_s:
            parts.append(f"{seconds(total_s)} while {who} {what}")
    return "; ".join(parts) or "nothing that stands out"


def _named(places: Sequence[int], names: Mapping[int, str]) -> str:
    """Return the first rank's name, and how many others there are."""
    others = len(places) - 1
    return names[places[0]] + (f" and {others} more" if others else "")
